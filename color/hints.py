"""Colours that a user gives for some pixels, as a sparse map that a network takes, and random ones to learn from.

Shapes: B batch, H/W pixels, h/w cells of the map, K random numbers, N known pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from color.lab import rgb_to_lab

# a, b, and whether they are known.
NUM_HINT_CHANNELS = 3
# ab / 50 is of the size of the latents that it stands beside.
_AB_UNIT = 50.0
# A sample shows 1 patch or more, each further one with this probability, of a side up to this share of the image's.
_NEXT_PATCH_PROB, _MAX_PATCHES, _MAX_SIDE = 7 / 8, 32, 0.15

# What `random_known` takes for each image: how many patches, and their places and sizes.
NUM_RANDOM = 1 + 3 * _MAX_PATCHES
# Known pixels of a large photo are converted so many at a time.
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class KnownColors:
    """Colours at some pixels of a photo; what is not known takes no memory."""

    index: Tensor  # int64 (N,) which pixels, counted row by row; in any order, one may occur twice
    color: Tensor  # uint8 (N, 3) sRGB, of which a* and b* alone count
    size_px: tuple[int, int]  # (H, W) of the photo


def known_map(known: KnownColors, *, size: tuple[int, int]) -> Tensor:
    """The map (1, 3, h, w) of a user's colours: each pixel counts in the cell (h, w) that holds its centre.

    As `hint_map` of the whole photo wherever its sides are multiples of the map's, in the memory of the known pixels. A
    photo with fewer pixels than the map has cells fills all cells that a pixel covers.
    """
    height, width = known.size_px
    rows, columns = min(size[0], height), min(size[1], width)
    sums = torch.zeros(rows * columns, NUM_HINT_CHANNELS, dtype=torch.float64)
    for index, color in zip(known.index.split(_CHUNK), known.color.split(_CHUNK), strict=True):
        ab = rgb_to_lab(color.T[None, :, None] / 255)[0, 1:, 0].T
        # Whole numbers: (2 r + 1) / (2 H) is the centre of row r.
        row = (2 * (index // width) + 1) * rows // (2 * height)
        column = (2 * (index % width) + 1) * columns // (2 * width)
        counted = torch.cat([ab, torch.ones_like(ab[:, :1])], dim=1).double()
        sums.index_add_(0, row * columns + column, counted)
    mean = sums[:, :2] / sums[:, 2:].clamp_min(1) / _AB_UNIT
    found = torch.cat([mean, (sums[:, 2:] > 0).double()], dim=1).float()
    return F.interpolate(found.T.reshape(1, NUM_HINT_CHANNELS, rows, columns), size=size, mode="nearest")


def hint_map(ab: Tensor, known: Tensor, *, size: tuple[int, int]) -> Tensor:
    """The map (B, 3, h, w): mean of the known ab in each cell, over 50, and whether any is known there; else zeros.

    Args:
        ab: (B, 2, H, W) CIELAB a* and b*.
        known: (B, 1, H, W) how much each pixel counts, in [0, 1].
        size: (h, w) of the map, no larger than (H, W).
    """
    weight = known.to(ab.dtype)
    share = F.adaptive_avg_pool2d(weight, size)
    mean = F.adaptive_avg_pool2d(ab * weight, size) / share.clamp_min(1e-12)
    return torch.cat([mean / _AB_UNIT, torch.ones_like(share)], dim=1) * (share > 0)


def no_hints(batch_size: int, size: tuple[int, int], *, device: torch.device | str = "cpu") -> Tensor:
    """The map (B, 3, h, w) of images of which no colour is known."""
    return torch.zeros(batch_size, NUM_HINT_CHANNELS, *size, device=device)


def random_known(uniform: np.ndarray, size_px: tuple[int, int]) -> Tensor:
    """Square patches as a user might point at, from `uniform` (B, NUM_RANDOM) in [0, 1): zeros and ones (B, 1, H, W).

    They are many or few, small or larger, anywhere; each image has at least one known pixel.
    """
    height, width = size_px
    count = 1 + np.floor(np.log1p(-uniform[:, :1]) / np.log(_NEXT_PATCH_PROB))
    used = torch.from_numpy(np.arange(_MAX_PATCHES) < count)
    numbers = torch.from_numpy(uniform[:, 1:]).float().unflatten(1, (_MAX_PATCHES, 3))
    half = 0.5 + numbers[..., 2] * _MAX_SIDE / 2 * min(height, width)

    def near(position: Tensor, side: int) -> Tensor:
        distance = torch.arange(side) + 0.5 - (position * side).floor()[..., None] - 0.5
        return distance.abs() < half[..., None]

    rows, columns = near(numbers[..., 0], height), near(numbers[..., 1], width)
    # (B, K, H) and (B, K, W): a pixel is known if some patch has both its row and its column.
    overlaps = torch.einsum("bkh,bkw->bhw", (rows & used[..., None]).float(), columns.float())
    return (overlaps > 0).float()[:, None]


def random_hints(image: Tensor, uniform: np.ndarray, *, prob: float, downscale: int) -> Tensor:
    """Maps (B, 3, h, w) of random patches of images' (B, 3, H, W) colours; of a share 1 - prob nothing is known.

    `uniform` are (B, NUM_RANDOM + 1) numbers in [0, 1); `downscale` is the side of a cell in pixels.
    """
    height, width = image.shape[-2:]
    known = random_known(uniform[:, 1:], (height, width))
    known[uniform[:, 0] >= prob] = 0
    size = (height // downscale, width // downscale)
    return hint_map(rgb_to_lab(image)[:, 1:], known.to(image.device), size=size)
