"""The CIEDE2000 colour difference.

Equation numbers: Sharma, Wu and Dalal 2005, "The CIEDE2000 color-difference formula: implementation notes,
supplementary test data, and mathematical observations".
"""

import torch
from torch import Tensor

_TWENTY_FIVE_TO_7 = 25.0**7


def delta_e_2000(lab_a: Tensor, lab_b: Tensor) -> Tensor:
    """Returns CIEDE2000 per pixel with unit weights (k_L = k_C = k_H = 1).

    Args:
        lab_a: (B, 3, H, W) Lab.
        lab_b: (B, 3, H, W) Lab.

    Returns:
        (B, 1, H, W), at least 0, symmetric in the arguments.

    Raises:
        ValueError: if the shapes differ.
    """
    if lab_a.shape != lab_b.shape:
        raise ValueError(
            f"delta_e_2000 got {tuple(lab_a.shape)} and {tuple(lab_b.shape)}, expected one shape (B, 3, H, W); "
            "resize one of the pictures first"
        )
    star_a, chroma_a, hue_a, star_b, chroma_b, hue_b = _adjusted(lab_a, lab_b)
    delta_star, delta_chroma = star_b - star_a, chroma_b - chroma_a
    neutral = chroma_a * chroma_b == 0

    # Eq. 10, 11: the signed hue difference the short way round.
    turn = hue_b - hue_a
    turn = turn - 360.0 * (turn > 180.0).to(turn.dtype) + 360.0 * (turn < -180.0).to(turn.dtype)
    turn = turn.masked_fill(neutral, 0.0)
    delta_hue = 2.0 * (chroma_a * chroma_b).sqrt() * torch.deg2rad(turn / 2.0).sin()

    # Eq. 12 to 14: means, the hue's on the circle.
    mean_star, mean_chroma = (star_a + star_b) / 2.0, (chroma_a + chroma_b) / 2.0
    total = hue_a + hue_b
    far = (hue_a - hue_b).abs() > 180.0
    mean_hue = torch.where(far, torch.where(total < 360.0, total + 360.0, total - 360.0), total) / 2.0
    mean_hue = torch.where(neutral, total, mean_hue)

    # Eq. 15 to 21: the weighting functions and the rotation term.
    weight_hue = _hue_weight(mean_hue)
    squared = (mean_star - 50.0).square()
    scale_star = 1.0 + 0.015 * squared / (20.0 + squared).sqrt()
    scale_chroma = 1.0 + 0.045 * mean_chroma
    scale_hue = 1.0 + 0.015 * mean_chroma * weight_hue
    rotation_deg = 30.0 * torch.exp(-((mean_hue - 275.0) / 25.0).square())
    rotation = -torch.deg2rad(2.0 * rotation_deg).sin() * 2.0 * _chroma_ratio(mean_chroma)

    # Eq. 22.
    lightness_term, chroma_term = delta_star / scale_star, delta_chroma / scale_chroma
    hue_term = delta_hue / scale_hue
    total_square = lightness_term**2 + chroma_term**2 + hue_term**2 + rotation * chroma_term * hue_term
    return total_square.clamp(min=0.0).sqrt()


def _adjusted(lab_a: Tensor, lab_b: Tensor) -> tuple[Tensor, ...]:
    """L*, C' and h' (degrees in [0, 360)) of both colours, eq. 2 to 7: a* is stretched where chroma is low."""
    star_a, green_a, yellow_a = lab_a.split(1, dim=1)
    star_b, green_b, yellow_b = lab_b.split(1, dim=1)
    mean_chroma = (torch.hypot(green_a, yellow_a) + torch.hypot(green_b, yellow_b)) / 2.0
    stretch = 1.5 - 0.5 * _chroma_ratio(mean_chroma)
    polar = []
    for star, green, yellow in ((star_a, green_a, yellow_a), (star_b, green_b, yellow_b)):
        green = stretch * green
        hue = torch.rad2deg(torch.atan2(yellow, green)) % 360.0
        polar += [star, torch.hypot(green, yellow), hue]
    return tuple(polar)


def _chroma_ratio(chroma: Tensor) -> Tensor:
    """sqrt(C^7 / (C^7 + 25^7)), which is G's and R_C's common part."""
    seventh = chroma.pow(7)
    return (seventh / (seventh + _TWENTY_FIVE_TO_7)).sqrt()


def _hue_weight(hue_deg: Tensor) -> Tensor:
    """T of eq. 15."""
    hue = torch.deg2rad(hue_deg)
    degree = torch.pi / 180.0
    return (
        1.0
        - 0.17 * (hue - 30.0 * degree).cos()
        + 0.24 * (2.0 * hue).cos()
        + 0.32 * (3.0 * hue + 6.0 * degree).cos()
        - 0.20 * (4.0 * hue - 63.0 * degree).cos()
    )
