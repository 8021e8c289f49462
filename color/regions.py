"""A region of a photo that takes new colours, while all outside keeps what it has.

Shapes: H/W pixels, h/w cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from color.gamut import clip_chroma
from color.lab import rgb_to_lab

_STRIP_PX = 256
# Mean chroma in CIELAB: the rounding of a grey JPEG stays below, a toned print (sepia) lies far above.
_GREY_BELOW = 2.0


@torch.no_grad()
def blend_chroma(photo: Tensor, colored: Tensor, region: Tensor) -> Tensor:
    """The coloured photo inside a region and the photo itself outside, both bit for bit.

    Photos are uint8 (3, H, W), the region uint8 (H, W) with 255 inside and 0 outside. Between the two ab is mixed by the
    region's grey value and L* is the photo's; those pixels alone are converted.
    """
    result = torch.where(region > 0, colored, photo)
    for start in range(0, len(region), _STRIP_PX):
        strip = region[start : start + _STRIP_PX]
        row, column = ((strip > 0) & (strip < 255)).nonzero(as_tuple=True)
        if len(row):
            place = (slice(None), row + start, column)
            result[place] = _mixed(photo[place], colored[place], strip[row, column])
    return result


def touched_cells(region: Tensor, size: tuple[int, int]) -> Tensor:
    """1 for each cell with a pixel of a region uint8 (H, W), however small, and else 0: float (1, 1, h, w)."""
    height, num_rows = len(region), size[0]
    # Rows first and in 8 bits: no float copy of a large photo. The windows are those of adaptive_max_pool2d.
    windows = [(i * height // num_rows, -(-(i + 1) * height // num_rows)) for i in range(num_rows)]
    rows = torch.stack([region[start:stop].amax(0) for start, stop in windows])
    return F.adaptive_max_pool2d((rows > 0).float()[None, None], size)


def is_grey_outside(image: Tensor, region: Tensor) -> Tensor:
    """Whether photos (B, 3, h, w) in [0, 1] have hardly any colour outside a region uint8 (H, W): bool (B,)."""
    outside = 1 - touched_cells(region, (image.shape[-2], image.shape[-1])).to(image.device)
    chroma = rgb_to_lab(image)[:, 1:].norm(dim=1, keepdim=True)
    return (chroma * outside).sum((1, 2, 3)) < _GREY_BELOW * outside.sum().clamp(min=1)


def inside_cells(image: Tensor, region: Tensor, size: tuple[int, int]) -> Tensor:
    """1 for the cells that take new colours, float (B, 1, h, w): those that a region uint8 (H, W) touches.

    Of a photo that is grey outside all of them, as without a region: a decoder dulls colours among grey latents.
    """
    touched = touched_cells(region, size).to(image.device)
    return touched.maximum(is_grey_outside(image, region).float().view(-1, 1, 1, 1))


def _mixed(photo: Tensor, colored: Tensor, share: Tensor) -> Tensor:
    """Pixels uint8 (3, N) with the photo's L* and ab on the way from the photo's to the coloured one's."""
    own, new = (rgb_to_lab(pixels[None, :, None] / 255) for pixels in (photo, colored))
    ab = torch.lerp(own[:, 1:], new[:, 1:], share / 255)
    return (clip_chroma(torch.cat([own[:, :1], ab], dim=1))[0, :, 0] * 255).round().byte()
