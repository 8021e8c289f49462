"""Bringing Lab colours into the sRGB gamut by lowering chroma, never by changing lightness."""

import torch
from kornia.color import linear_rgb_to_rgb
from torch import Tensor

from color.lab import lab_to_linear_rgb

# In linear light. Float32 puts the gamut's own surface (pure red, white) this far outside; clamping it back moves
# L* by less than 0.01.
_TOLERANCE = 1e-5


def clip_chroma(lab: Tensor, *, num_bisections: int = 12) -> Tensor:
    """Returns the sRGB image whose chroma is scaled down, per pixel, just enough to fit the gamut.

    Each pixel keeps L and hue and becomes (L, s * a, s * b) with the largest s in [0, 1] inside sRGB, found by
    bisection to 2^-num_bisections from below; 12 leave a chroma error below 0.03 Lab units. Pixels inside the gamut are
    not touched.

    Args:
        lab: (B, 3, H, W) with L* in [0, 100] (clamped to it), any a*, b*.
        num_bisections: halvings of the interval for s.

    Returns:
        (B, 3, H, W) in [0, 1], float32 (float64 for float64 input); |dL*| < 0.05 before any rounding.
    """
    star, chroma = lab[:, :1].clamp(0.0, 100.0), lab[:, 1:]
    linear = lab_to_linear_rgb(torch.cat([star, chroma], dim=1))
    outside = ~_in_gamut(linear)
    if outside.any():
        linear.movedim(1, -1)[outside] = _largest_inside(
            star.movedim(1, -1)[outside], chroma.movedim(1, -1)[outside], num_bisections
        ).to(linear.dtype)
    return linear_rgb_to_rgb(linear.clamp(0.0, 1.0))


def _in_gamut(linear: Tensor) -> Tensor:
    """(B, H, W) bool: whether every channel of linear sRGB (B, 3, H, W) is inside [0, 1], up to float error."""
    low, high = linear.aminmax(dim=1)
    return (low >= -_TOLERANCE) & (high <= 1.0 + _TOLERANCE)


def _largest_inside(star: Tensor, chroma: Tensor, num_bisections: int) -> Tensor:
    """Linear sRGB (N, 3) of the pixels star (N, 1), chroma (N, 2) after the largest scaling that fits."""
    star, chroma = star[:, :, None, None], chroma[:, :, None, None]
    low = torch.zeros_like(star)
    high = torch.ones_like(star)
    for _ in range(num_bisections):
        middle = (low + high) / 2.0
        inside = _in_gamut(lab_to_linear_rgb(torch.cat([star, middle * chroma], dim=1)))[:, None]
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return lab_to_linear_rgb(torch.cat([star, low * chroma], dim=1))[:, :, 0, 0]
