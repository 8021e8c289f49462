"""Large images window by window: where the windows lie, how many a network is given at once, how they are blended.

Shapes: B batch, C image channels, S samples, K channels of the result, H/W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.options import option

# Pixels that a network is given together, windows and samples alike.
_PIXELS_AT_ONCE = 1 << 20

Place = tuple[int, int]  # of a window: row of its image in the batch, its number in the image


def check_overlap(overlap: float) -> None:
    """Raises a ValueError for an overlap that is no share of a window below 1."""
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap} is not a share from 0, below 1")


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """How a large image is cut.

    Raises:
        ValueError: a window below one pixel, or an overlap outside [0, 1).
    """

    window: int | None = option("side in pixels of the windows of an image; the run's own if not given", None)
    overlap: float = option("share of a window that it has in common with the next", 0.25)

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} is not a side of at least 1 pixel")
        check_overlap(self.overlap)


def by_windows(
    segment: Callable[[Tensor, list[Place]], Tensor],
    image: Tensor,
    *,
    window: int,
    overlap: float,
    grid_px: int,
    share: int = 1,
) -> Tensor:
    """What `segment` makes of images (S, B, K, H, W), several windows at a time, blended where windows overlap.

    Args:
        segment: (windows (N, C, h, w), their N places) -> (S, N, K, h, w); h and w are multiples of `grid_px`.
        image: (B, C, H, W) of any size; what a window lacks is mirrored, or repeated where it is too small to mirror.
        window: side of the windows in pixels, rounded up to the grid.
        overlap: least share of a window in common with the next.
        grid_px: see `segment`.
        share: `segment` is given this share of the usual number of pixels at once.
    """
    height, width = image.shape[-2:]
    side = math.ceil(window / grid_px) * grid_px
    sides = [min(side, math.ceil(length / grid_px) * grid_px) for length in (height, width)]
    missing = [max(0, part - length) for part, length in zip(sides, (height, width), strict=True)]
    mode = "reflect" if missing[0] < height and missing[1] < width else "replicate"
    whole = F.pad(image, (0, missing[1], 0, missing[0]), mode=mode)
    tops, lefts = (
        _starts(length, part, overlap) for length, part in zip(whole.shape[-2:], sides, strict=True)
    )
    parts = [(slice(y, y + sides[0]), slice(x, x + sides[1])) for y in tops for x in lefts]
    places = [(row, number) for number in range(len(parts)) for row in range(len(image))]
    # A Hann window, so that seams fade; never 0, since the corners of the image have one window alone.
    weight = torch.outer(*(torch.hann_window(part + 2, periodic=False)[1:-1] for part in sides))
    weight = weight.clamp_min(1e-3).to(image.device)
    weights = image.new_zeros(whole.shape[-2:])
    for rows, columns in parts:
        weights[rows, columns] += weight
    count, total = max(1, at_once(sides) // share), torch.empty(0)
    for first in range(0, len(places), count):
        some = places[first : first + count]
        found = segment(torch.stack([whole[row][:, *parts[number]] for row, number in some]), some)
        if first == 0:
            total = found.new_zeros(len(found), len(image), found.shape[2], *whole.shape[-2:])
        for (row, number), values in zip(some, found.unbind(1), strict=True):
            total[:, row, :, *parts[number]] += values * (weight / weights[parts[number]])
    return total[..., :height, :width]


def at_once(sides: Sequence[int]) -> int:
    """Windows of these sides that a network is given together: a million pixels, or one."""
    return max(1, _PIXELS_AT_ONCE // math.prod(sides))


def _starts(length: int, part: int, overlap: float) -> list[int]:
    """Where windows of a side begin, evenly spaced from edge to edge."""
    if part >= length:
        return [0]
    count = math.ceil((length - part) / max(1.0, part * (1 - overlap))) + 1
    return [round(number * (length - part) / (count - 1)) for number in range(count)]
