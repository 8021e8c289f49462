"""Moving the chroma of a picture onto the lightness of a photo, at the photo's own size.

Chroma from a small picture is carried up with the fast guided filter (He and Sun 2015, arXiv 1505.00996): inside each
window ab is modelled as a linear function of lightness, ab = slope * L + offset; slope and offset are computed where
both are known (at the small size) and only they are interpolated, so that chroma turns where the photo's lightness
turns, instead of bleeding over the edge as interpolated chroma does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from color.gamut import clip_chroma
from color.lab import lightness, rgb_to_lab

# A strip of 1 x 5000 pixels would otherwise become 64 x 320000 for the network.
MAX_ASPECT = 16
# Of the guided filter: the largest short side at which its coefficients are computed, and the radius of its windows there.
_GUIDE_PX, _RADIUS = 512, 2
# Variance of lightness (L* / 100) below which a window counts as flat and its chroma stops following the photo's
# lightness; smaller is sharper at faint edges and turns film grain into coloured grain.
_EPS = 3e-4


def transfer_chroma_exact(lightness: Tensor, image: Tensor, *, chroma_scale: float | Tensor = 1.0) -> Tensor:
    """Returns the image with its L* replaced, not rounded; out-of-gamut colours lose chroma, not lightness.

    Args:
        lightness: (B, 1, H, W), L* / 100 in [0, 1].
        image: (B, 3, H, W) sRGB in [0, 1] at the same size.
        chroma_scale: multiplies ab: 0 gives grey, above 1 stronger colour; a number or (B, 1, 1, 1).
    """
    lab = rgb_to_lab(image)
    return clip_chroma(torch.cat([100.0 * lightness.to(lab.dtype), chroma_scale * lab[:, 1:]], dim=1))


@torch.no_grad()
def transfer_chroma(photo: Tensor, colored: Tensor, *, strip_px: int = 256) -> Tensor:
    """Returns the photo with its own L* and the chroma of a smaller picture of the same view, uint8 (3, H, W).

    Full-size work is done in strips of rows; on top of input and output one (H, W) float32 plane and one strip are
    held: 24 megapixels take about 0.6 GiB. At equal size ab is taken over unfiltered.

    Args:
        photo: (3, H, W) uint8 sRGB of any size; only its L* is used.
        colored: (3, h, w) in [0, 1], the same view. A larger picture than the photo is first reduced.
        strip_px: rows worked on at once; changes memory, not the result.
    """
    height, width = photo.shape[-2:]
    strips = [slice(start, min(start + strip_px, height)) for start in range(0, height, strip_px)]
    star = torch.cat([lightness(photo[None, :, rows].float() / 255.0) for rows in strips], dim=-2)
    colored = colored.to(photo.device, torch.float32).clamp(0.0, 1.0)[None]
    if colored.shape[-2] >= height and colored.shape[-1] >= width:
        colored = _resize(colored, (height, width))

        def chroma_at(rows: slice) -> Tensor:
            return rgb_to_lab(colored[..., rows, :])[:, 1:]

    else:
        size = guide_size((height, width), min(_GUIDE_PX, *colored.shape[-2:]))
        guide, chroma = _resize(star, size), _resize(rgb_to_lab(colored)[:, 1:], size)
        coefficients = _linear_coefficients(guide, chroma, _RADIUS, _EPS)
        # Columns are interpolated once; rows strip by strip at their absolute position, so that strips join exactly.
        columns = F.interpolate(coefficients, size=(size[0], width), mode="bilinear", align_corners=False)

        def chroma_at(rows: slice) -> Tensor:
            slope, offset = _interpolated_rows(columns, rows, height).chunk(2, dim=1)
            return slope * star[..., rows, :] + offset

    result = torch.empty_like(photo)
    for rows in strips:
        lab = torch.cat([100.0 * star[..., rows, :], chroma_at(rows)], dim=1)
        result[:, rows] = clip_chroma(lab)[0].mul_(255.0).round_().to(torch.uint8)
    return result


def working_copy(photo: Tensor, *, short_px: int, grid_px: int) -> Tensor:
    """Returns a small float copy (1, 3, h, w) in [0, 1] of a photo uint8 (3, H, W) for a network.

    The short side becomes `short_px` and the aspect is kept as far as sides that are multiples of `grid_px` and at most
    `MAX_ASPECT` times the short one allow; the chroma drawn on the copy is stretched back with it.
    """
    size = working_size((photo.shape[-2], photo.shape[-1]), short_px=short_px, grid_px=grid_px)
    # uint8 interpolation is antialiased and holds no float copy of a large photo.
    return F.interpolate(photo[None], size=size, mode="bilinear", antialias=True).float() / 255


def working_size(size_px: tuple[int, int], *, short_px: int, grid_px: int) -> tuple[int, int]:
    """(H, W) of the `working_copy` of a photo of (H, W) pixels."""
    short = max(min(size_px), max(size_px) / MAX_ASPECT)
    height, width = (max(grid_px, round(side * short_px / short / grid_px) * grid_px) for side in size_px)
    return height, width


def guide_size(photo_size: tuple[int, int], short_px: int) -> tuple[int, int]:
    """Returns (height, width) with the photo's aspect, short side at most short_px, never above the photo's size."""
    scale = min(1.0, short_px / min(photo_size))
    return max(1, round(photo_size[0] * scale)), max(1, round(photo_size[1] * scale))


def _linear_coefficients(guide: Tensor, chroma: Tensor, radius: int, eps: float) -> Tensor:
    """Slope and offset (1, 2 + 2, h, w) of ab over the guide (1, 1, h, w).

    The slope is the guided filter's, averaged over windows (eq. 5 and 8); the offset makes the model exact at every
    pixel of the guide. The paper's averaged offset also smooths chroma over the window: on 4 scikit-image photos
    reduced to 64 px, mean ab error at full size 3.7 with it, 2.6 without, 3.0 for bilinear (radius 2).
    """
    # Centred by the global mean: E[L^2] - E[L]^2 would cancel in float32 where L is high and flat.
    centred = guide - guide.mean()
    mean = _box_mean(centred, radius)
    variance = (_box_mean(centred * centred, radius) - mean * mean).clamp(min=0.0)
    covariance = _box_mean(centred * chroma, radius) - mean * _box_mean(chroma, radius)
    slope = _box_mean(covariance / (variance + eps), radius)
    return torch.cat([slope, chroma - slope * guide], dim=1)


def _box_mean(tensor: Tensor, radius: int) -> Tensor:
    """Mean over (2 radius + 1)^2 windows; at the border over the part inside the picture."""
    for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        tensor = F.avg_pool2d(tensor, kernel, stride=1, padding=padding, count_include_pad=False)
    return tensor


def _resize(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False, antialias=True)


def _interpolated_rows(columns: Tensor, rows: slice, height: int) -> Tensor:
    """Rows of the bilinear (align_corners=False) enlargement of columns (1, C, h, W) to `height` rows."""
    last = columns.shape[-2] - 1
    row = torch.arange(rows.start, rows.stop, device=columns.device, dtype=torch.float64)
    position = ((row + 0.5) * ((last + 1) / height) - 0.5).clamp(0.0, last)
    upper = position.floor().long()
    weight = (position - upper).to(columns.dtype)[:, None]
    return torch.lerp(columns[..., upper, :], columns[..., (upper + 1).clamp(max=last), :], weight)
