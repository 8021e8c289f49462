"""The figures of coloured photos against the true ones, and their mean and spread over runs and seeds.

Shapes: N photos, H/W pixels.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from color.lab import rgb_to_lab
from metrics.color import Colorfulness, ColorfulnessVariant, DeltaE2000, colorfulness
from metrics.delta_e import delta_e_2000
from metrics.distribution import FrechetDistance
from metrics.per_image import Psnr, summarize

_CHUNK = 64


class Spread(NamedTuple):
    """Mean over draws, their sample standard deviation (None for a single one), and how many there are."""

    mean: float
    std: float | None
    num: int


def spread(values: Sequence[float]) -> Spread:
    """Of one figure per draw."""
    return Spread(*summarize(torch.tensor(list(values), dtype=torch.float64)))


class Figures:
    """Measures coloured photos against the true ones.

    Args:
        truth: the true photos, uint8 (N, 3, H, W).
        variant: of colourfulness.
        weights_dir: folder with SqueezeNet weights, which adds the Frechet distance.

    Raises:
        MissingWeightsError: no weights in that folder.
        ValueError: an unknown variant.
    """

    def __init__(
        self, truth: Tensor, *, variant: ColorfulnessVariant = "absolute", weights_dir: str | None = None
    ) -> None:
        self.truth = truth
        self.variant = Colorfulness(variant).variant  # which checks it
        self.weights_dir = weights_dir
        self.true_colorfulness = self.colorfulness(truth)
        if weights_dir is not None:
            self._frechet()  # before minutes of drawing, not after

    def __call__(self, images: Tensor) -> dict[str, float]:
        """Means over the photos uint8 (N, 3, H, W); the Frechet distance needs two or more."""
        colourful = self.colorfulness(images)
        figures = {
            "delta_e2000": self.delta_e(images).mean().item(),
            "colorfulness_difference": (colourful.mean() - self.true_colorfulness.mean()).abs().item(),
            "colorfulness": colourful.mean().item(),
            "psnr": self._over_chunks(Psnr(), images).mean().item(),
        }
        if self.weights_dir is not None and len(images) > 1:
            figures["frechet_squeezenet"] = self._frechet_distance(images)
        return figures

    def delta_e(self, images: Tensor, chosen: list[int] | None = None) -> Tensor:
        """CIEDE2000 of each photo, or of the chosen ones alone, float64 (N,)."""
        if chosen is None:
            return self._over_chunks(DeltaE2000(), images)
        return DeltaE2000().per_image(images[chosen].float() / 255, self.truth[chosen].float() / 255).double()

    def colorfulness(self, images: Tensor) -> Tensor:
        """Of each photo, float64 (N,)."""
        values = [colorfulness(c.float() / 255, variant=self.variant) for c in images.split(_CHUNK)]
        return torch.cat(values).double()

    def diversity(self, draws: Sequence[Tensor]) -> dict[str, float]:
        """Of several draws of the photos: mean CIEDE2000 between two of them, and of the best draw of each photo."""
        pairs = [_mean_delta_e(one, other).mean().item() for one, other in combinations(draws, 2)]
        best = torch.stack([self.delta_e(images) for images in draws]).amin(0)
        return {"diversity": sum(pairs) / len(pairs), "best_of_seeds": best.mean().item()}

    def _over_chunks(self, metric: DeltaE2000 | Psnr, images: Tensor) -> Tensor:
        pairs = zip(images.split(_CHUNK), self.truth.split(_CHUNK), strict=True)
        return torch.cat([metric.per_image(a.float() / 255, b.float() / 255) for a, b in pairs]).double()

    def _frechet(self) -> FrechetDistance:
        return FrechetDistance("squeezenet", weights_dir=self.weights_dir)

    def _frechet_distance(self, images: Tensor) -> float:
        metric = self._frechet()
        for image, truth in zip(images.split(_CHUNK), self.truth.split(_CHUNK), strict=True):
            metric.update(image.float() / 255, truth.float() / 255)
        return metric.compute().mean


def _mean_delta_e(one: Tensor, other: Tensor) -> Tensor:
    """CIEDE2000 (N,) between photos uint8 (N, 3, H, W)."""
    pairs = zip(one.split(_CHUNK), other.split(_CHUNK), strict=True)
    labs = ((rgb_to_lab(a.float() / 255), rgb_to_lab(b.float() / 255)) for a, b in pairs)
    return torch.cat([delta_e_2000(a, b).mean((1, 2, 3)) for a, b in labs]).double()
