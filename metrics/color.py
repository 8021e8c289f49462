"""Colour metrics: colourfulness, its difference to the truth, CIEDE2000, and the error of lightness."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from color.lab import lightness, rgb_to_lab
from metrics.delta_e import delta_e_2000
from metrics.per_image import PerImageMetric, PicturePairMetric, Summary, check_pair, summarize, to_8_bit

ColorfulnessVariant = Literal["hasler", "absolute"]
DifferenceConvention = Literal["of_means", "per_image"]


def colorfulness(image: Tensor, *, variant: ColorfulnessVariant = "hasler") -> Tensor:
    """Returns the colourfulness of each image, (B,), on the scale of 0..255 values.

    sqrt(std(rg)^2 + std(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2) with rg = R - G and yb = (R + G) / 2 - B
    (Hasler and Suesstrunk 2003, "Measuring colourfulness in natural images", M3) of images (B, 3, H, W) in [0, 1],
    rounded to 8 bit here. "absolute" takes |rg| and |yb| first, as the code published with CT2 and DDColor does; it is
    lower for pictures with opposite hues.
    """
    red, green, blue = to_8_bit(image).flatten(2).unbind(dim=1)
    opponents = torch.stack([red - green, (red + green) / 2.0 - blue], dim=1)
    if variant == "absolute":
        opponents = opponents.abs()
    spread = opponents.var(dim=2, correction=0).sum(dim=1).sqrt()
    return spread + 0.3 * opponents.mean(dim=2).square().sum(dim=1).sqrt()


class Colorfulness(PerImageMetric):
    """Colourfulness of the predictions alone, see `colorfulness`; no reference, so no direction is better."""

    def __init__(self, variant: ColorfulnessVariant = "hasler") -> None:
        super().__init__()
        self.variant = variant

    def update(self, pred: Tensor) -> None:
        """Adds a batch of images (B, 3, H, W) in [0, 1]."""
        self.keep(colorfulness(pred, variant=self.variant))


class ColorfulnessDifference(Metric):
    """Distance between the colourfulness of predictions and truth.

    "of_means" is |mean(pred) - mean(truth)| over the set (CT2, DDColor, MultiColor): errors of opposite sign cancel, and
    there is no spread. "per_image" is the mean of |pred - truth|.
    """

    pred_values: list[Tensor]
    target_values: list[Tensor]

    def __init__(
        self, variant: ColorfulnessVariant = "hasler", convention: DifferenceConvention = "of_means"
    ) -> None:
        super().__init__()
        self.variant, self.convention = variant, convention
        self.add_state("pred_values", default=[], dist_reduce_fx="cat")
        self.add_state("target_values", default=[], dist_reduce_fx="cat")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds a batch of image pairs (B, 3, H, W) in [0, 1]."""
        check_pair(pred, target)
        self.pred_values.append(colorfulness(pred, variant=self.variant))
        self.target_values.append(colorfulness(target, variant=self.variant))

    def compute(self) -> Summary:
        """The difference over all images, by the chosen convention."""
        pred, target = (dim_zero_cat(v).double() for v in (self.pred_values, self.target_values))
        if self.convention == "per_image":
            return summarize((pred - target).abs())
        return Summary((pred.mean() - target.mean()).abs().item(), None, pred.numel())


class DeltaE2000(PicturePairMetric):
    """CIEDE2000 colour difference, mean over the pixels of each 8-bit picture; 1 is about just noticeable."""

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        difference = delta_e_2000(rgb_to_lab(to_8_bit(pred) / 255.0), rgb_to_lab(to_8_bit(target) / 255.0))
        return difference.mean(dim=(1, 2, 3))


class LightnessError(PicturePairMetric):
    """|dL*| in Lab units (0..100), mean over the pixels of each 8-bit picture: what an exact merge keeps below 0.3."""

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        difference = lightness(to_8_bit(pred) / 255.0) - lightness(to_8_bit(target) / 255.0)
        return 100.0 * difference.abs().mean(dim=(1, 2, 3))
