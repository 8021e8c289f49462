"""Conditions that are made from a photo itself, by name.

Shapes: B batch, H/W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from kornia.filters import canny as kornia_canny
from kornia.filters import gaussian_blur2d, sobel
from torch import Tensor
from torch.nn import functional as F

from color.lab import grey_image, lightness

MASKED = "masked"
NUM_BOX = 4  # numbers that place the box of `masked`
_SCRIBBLE_ABOVE = 0.25  # soft edges of at least this strength become lines
_SCRIBBLE_WIDTH = 3  # pixels
# What is unknown, as diffusers' inpainting ControlNets have it: no colour is.
_UNKNOWN = -1.0


def canny(image: Tensor, low: float) -> Tensor:
    """Thin edges, 0 or 1 (Canny 1986); the upper threshold of the gradient is twice the lower one."""
    return kornia_canny(image, low_threshold=low, high_threshold=2 * low)[1]


def soft_edges(image: Tensor, sigma: float) -> Tensor:
    """Gradients of the smoothed luma over the largest of each image, in [0, 1]; 0 of a flat one."""
    smooth = _blurred(image.mean(1, keepdim=True), sigma)
    strength = sobel(smooth)
    largest = strength.amax((1, 2, 3), keepdim=True)
    return torch.where(largest > 1e-3, strength / largest.clamp_min(1e-3), torch.zeros_like(strength))


def scribble(image: Tensor, sigma: float) -> Tensor:
    """Strong soft edges as lines a few pixels wide, 0 or 1."""
    lines = (soft_edges(image, sigma) >= _SCRIBBLE_ABOVE).float()
    return F.max_pool2d(lines, _SCRIBBLE_WIDTH, stride=1, padding=_SCRIBBLE_WIDTH // 2)


def low_resolution(image: Tensor, factor: float) -> Tensor:
    """The image shrunk by a factor and enlarged again."""
    height, width = image.shape[-2:]
    size = (max(1, round(height / factor)), max(1, round(width / factor)))
    small = F.interpolate(image, size, mode="area")
    return F.interpolate(small, (height, width), mode="bilinear", align_corners=False)


def boxes(uniform: Tensor, size_px: tuple[int, int], share: float) -> Tensor:
    """Boxes of unknown pixels, bool (B, 1, H, W), by numbers (B, 4) in [0, 1): sides of half to all of a share, and place."""
    height, width = size_px
    sides = uniform[:, :2] * share / 2 + share / 2
    starts = uniform[:, 2:] * (1 - sides)
    y, x = (torch.arange(n, device=uniform.device).add(0.5) / n for n in (height, width))
    inside = [
        (line >= starts[:, k : k + 1]) & (line < (starts + sides)[:, k : k + 1])
        for k, line in enumerate((y, x))
    ]
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def masked(image: Tensor, region: Tensor) -> Tensor:
    """The image (B, 3, H, W) with -1 where a region, bool (B or 1, 1, H, W), is unknown."""
    return image.masked_fill(region, _UNKNOWN)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    size = 2 * round(3 * sigma) + 1
    longest = 2 * min(image.shape[-2:]) - 1  # that can be mirrored at the edge
    return gaussian_blur2d(image, min(size, longest), (sigma, sigma))


# (image (B, 3, H, W) in [0, 1], amount) -> (B, 1 or 3, H, W), and the amount that is usual.
_MAKERS: dict[str, tuple[Callable[[Tensor, float], Tensor], float]] = {
    "canny": (canny, 0.1),
    "soft_edges": (soft_edges, 1.0),
    "scribble": (scribble, 1.0),
    "grey": (lambda image, _: grey_image(lightness(image)), 1.0),
    "blur": (_blurred, 4.0),
    "low": (low_resolution, 4.0),
}
NAMES = (*_MAKERS, MASKED)


@dataclass(frozen=True)
class MadeCondition:
    """A condition that is made from a photo: its name, and how much of it.

    The amount is the lower threshold of canny, the standard deviation in pixels of blur, soft_edges and scribble, the factor of
    low, and the share of the sides that a box of masked covers at most.

    Example:
        >>> MadeCondition.parse("low:8")(torch.rand(1, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    name: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> "MadeCondition | None":
        """Of a text NAME or NAME:AMOUNT; None of another name.

        Raises:
            ValueError: an amount that is no number above 0.
        """
        name, colon, amount = text.partition(":")
        if name not in NAMES:
            return None
        if name == "grey" and colon:
            raise ValueError(f"module.conds has {text}; grey takes no amount, write grey alone")
        usual = 0.5 if name == MASKED else _MAKERS[name][1]
        try:
            number = float(amount) if colon else usual
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf") or (name == MASKED and number > 1):
            raise ValueError(
                f"module.conds has {text}; expected a number above 0 behind the colon, or {name} alone for {usual:g}"
            )
        return cls(name, number)

    @torch.no_grad()
    def __call__(
        self, image: Tensor, *, uniform: Tensor | None = None, region: Tensor | None = None
    ) -> Tensor:
        """The condition (B, 3, H, W) of images (B, 3, H, W) in [0, 1].

        What is masked is a region, bool (1 or B, 1, H, W), else a box by numbers (B, 4) in [0, 1).
        """
        if self.name == MASKED:
            if region is None:
                assert uniform is not None
                region = boxes(uniform, (image.shape[-2], image.shape[-1]), self.amount)
            return masked(image, region)
        with torch.autocast(image.device.type, enabled=False):
            return _MAKERS[self.name][0](image, self.amount).expand(-1, 3, -1, -1)
