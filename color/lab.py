"""Conversions between sRGB and CIE 1976 L*a*b* (D65, 2 degree observer), and the project's definition of grey.

The 3x3 products are written channel by channel: as a convolution or a matrix product they would run in half
precision under autocast, and in TF32 on CUDA (PyTorch's default for convolutions), which costs Lab three digits.
Constants are those of scikit-image, so both agree to rounding.

Every function raises ValueError for a tensor that is not floating point or not of the shape that it names.
"""

import torch
from kornia.color import linear_rgb_to_rgb, rgb_to_linear_rgb
from torch import Tensor

# Linear sRGB -> XYZ, its inverse, and the D65 white point, as in skimage.color.
_XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_RGB_FROM_XYZ = (
    (3.2404813432005266, -1.5371515162713185, -0.4985363261688878),
    (-0.9692549499965682, 1.8759900014898907, 0.0415559265582928),
    (0.0556466391351772, -0.2040413383665112, 1.0573110696453443),
)
_WHITE = (0.95047, 1.0, 1.08883)
# Below this share of white, L* is linear in Y (CIE 15, with the usual rounded constants).
_LINEAR_BELOW = 0.008856
_F_LINEAR_BELOW = 0.2068966
_SLOPE = 7.787
_OFFSET = 4.0 / 29.0


def rgb_to_lab(image: Tensor) -> Tensor:
    """Converts sRGB (B, 3, H, W) in [0, 1] to Lab: L* in [0, 100], of sRGB a* about -86..98 and b* -108..95.

    Half precision is computed in float32, float64 stays float64.
    """
    linear = rgb_to_linear_rgb(_working(image, channels=3))
    xyz = zip(_mix(linear, _XYZ_FROM_RGB), _WHITE, strict=True)
    fx, fy, fz = (_f(channel / white) for channel, white in xyz)
    return torch.cat([116.0 * fy - 16.0, 500.0 * (fx - fy), 200.0 * (fy - fz)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Converts Lab to sRGB, both (B, 3, H, W), without clipping: colours outside the gamut leave [0, 1]."""
    return linear_rgb_to_rgb(lab_to_linear_rgb(lab))


def lab_to_linear_rgb(lab: Tensor) -> Tensor:
    """Converts Lab to linear-light sRGB (B, 3, H, W), unclipped; enough to test for the gamut."""
    star, a, b = _working(lab, channels=3).split(1, dim=1)
    fy = (star + 16.0) / 116.0
    # A negative Z has no colour; scikit-image and kornia clamp it in the same place.
    fs = (fy + a / 500.0, fy, (fy - b / 200.0).clamp(min=0.0))
    xyz = torch.cat([_f_inverse(f) * white for f, white in zip(fs, _WHITE, strict=True)], dim=1)
    return torch.cat(_mix(xyz, _RGB_FROM_XYZ), dim=1)


def lightness(image: Tensor) -> Tensor:
    """Returns L* / 100, (B, 1, H, W) in [0, 1], of sRGB (B, 3, H, W) in [0, 1]: the project's one definition of grey.

    Example:
        >>> lightness(torch.ones(1, 3, 2, 2)).mean().round(decimals=4).item()
        1.0
    """
    linear = rgb_to_linear_rgb(_working(image, channels=3))
    return 1.16 * _f(_mix(linear, _XYZ_FROM_RGB[1:2])[0]) - 0.16


def grey_image(lightness: Tensor) -> Tensor:
    """Returns the neutral sRGB photo (R = G = B), (B, 3, H, W) in [0, 1], of a lightness (B, 1, H, W) in [0, 1].

    The function `lightness` of it is the argument again.
    """
    luminance = _f_inverse((_working(lightness, channels=1) + 0.16) / 1.16)
    return linear_rgb_to_rgb(luminance.expand(-1, 3, -1, -1)).clamp(0.0, 1.0)


def _working(tensor: Tensor, *, channels: int) -> Tensor:
    """Returns the tensor in float32 (float64 stays); raises unless it is floating point (B, channels, H, W)."""
    if tensor.ndim != 4 or tensor.shape[1] != channels:
        raise ValueError(
            f"colour conversion got shape {tuple(tensor.shape)}, expected (B, {channels}, H, W); "
            "add a batch dimension with tensor[None] or pick the channels first"
        )
    if not tensor.is_floating_point():
        raise ValueError(
            f"colour conversion got dtype {tensor.dtype}, expected floating point in [0, 1]; divide 8-bit values by 255"
        )
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _mix(channels: Tensor, matrix: tuple[tuple[float, float, float], ...]) -> list[Tensor]:
    """Returns one (B, 1, H, W) tensor per matrix row."""
    first, second, third = channels.split(1, dim=1)
    return [first * row[0] + second * row[1] + third * row[2] for row in matrix]


def _f(t: Tensor) -> Tensor:
    """Lab's cube root with its linear toe (CIE 15)."""
    return torch.where(t > _LINEAR_BELOW, t.clamp(min=_LINEAR_BELOW).pow(1.0 / 3.0), _SLOPE * t + _OFFSET)


def _f_inverse(f: Tensor) -> Tensor:
    return torch.where(f > _F_LINEAR_BELOW, f * f * f, (f - _OFFSET) / _SLOPE)
