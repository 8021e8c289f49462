"""Distances between the boundaries of class masks: HD95, normalised surface distance, boundary F."""

from collections.abc import Sequence
from statistics import harmonic_mean
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from metrics.per_image import PerImageMetric
from metrics.segmentation import Classes


class Surfaces(NamedTuple):
    """The boundaries of one image, in the unit of the spacing.

    `pairs` has for each class in truth or prediction the distances from each boundary pixel of the prediction to the
    truth's boundary, and from each of the truth's to the prediction's; of a class that one of them lacks both are
    infinite. None stands for an image that is void everywhere. `diagonal` is the image's.
    """

    pairs: list[tuple[np.ndarray, np.ndarray]] | None
    diagonal: float


def surface_distances(
    pred: Tensor, target: Tensor, *, spacing: Sequence[float] = (1.0, 1.0), **classes: Any
) -> list[Surfaces]:
    """Returns the boundaries of each image of a batch of masks, int64 (B, H, W).

    A boundary is what erosion by the four neighbours takes away; at the image's edge all is boundary, as in MONAI.
    `spacing` is the height and width of a pixel; `classes` are the fields of `Classes`.
    """
    which = Classes(**classes)
    known = which.checked(pred, target)
    ours, theirs = (which.masks(ids, known).cpu().numpy() for ids in (pred, target))
    diagonal = float(np.hypot(pred.shape[1] * spacing[0], pred.shape[2] * spacing[1]))
    found = []
    for our, their, seen in zip(ours, theirs, known, strict=True):
        present = [(a, b) for a, b in zip(our, their, strict=True) if a.any() or b.any()]
        pairs = [_distances(a, b, spacing) for a, b in present]
        found.append(Surfaces(pairs if seen.any() else None, diagonal))
    return found


def _distances(
    pred: np.ndarray, target: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    if not (pred.any() and target.any()):
        return np.array([np.inf]), np.array([np.inf])
    ours, theirs = (mask & ~binary_erosion(mask) for mask in (pred, target))
    return (
        distance_transform_edt(~theirs, sampling=spacing)[ours],
        distance_transform_edt(~ours, sampling=spacing)[theirs],
    )


class SurfaceMetric(PerImageMetric):
    """Base: `update(surfaces)` keeps each image's mean over its classes of what `pair` says.

    An image with no class in truth or prediction has the value `perfect`, one that is void everywhere has none.
    """

    leaves_out_undefined = True
    perfect = 1.0

    def pair(self, to_target: np.ndarray, to_pred: np.ndarray, diagonal: float) -> float:
        """The value of one class."""
        raise NotImplementedError(f"{type(self).__name__} must define pair(to_target, to_pred, diagonal)")

    def update(self, surfaces: Sequence[Surfaces]) -> None:
        """Adds a batch of boundaries, see `surface_distances`."""
        values = [
            np.nan
            if image.pairs is None
            else np.mean([self.pair(*pair, image.diagonal) for pair in image.pairs] or [self.perfect])
            for image in surfaces
        ]
        self.keep(torch.tensor(values, device=self.device))


class HausdorffDistance95(SurfaceMetric):
    """HD95: the larger of the 95th percentiles of both directed distances, in the unit of the spacing.

    A class missing in truth or prediction has the image's diagonal, the worst that is possible.
    """

    perfect = 0.0

    def pair(self, to_target: np.ndarray, to_pred: np.ndarray, diagonal: float) -> float:
        return float(max(np.percentile(part.clip(max=diagonal), 95) for part in (to_target, to_pred)))


class NormalizedSurfaceDistance(SurfaceMetric):
    """NSD: share of both boundaries within a tolerance, in the spacing's unit, of the other (Nikolov et al. 2018)."""

    def __init__(self, tolerance: float = 1.0) -> None:
        super().__init__()
        self.tolerance = tolerance

    def pair(self, to_target: np.ndarray, to_pred: np.ndarray, diagonal: float) -> float:
        return float(np.mean(np.concatenate([to_target, to_pred]) <= self.tolerance))


class BoundaryF(SurfaceMetric):
    """Harmonic mean of the shares of the predicted and of the true boundary within a tolerance of the other.

    BF of Csurka et al. 2013; the tolerance is a share of the image's diagonal.
    """

    def __init__(self, tolerance_share: float = 0.0075) -> None:
        super().__init__()
        self.tolerance_share = tolerance_share

    def pair(self, to_target: np.ndarray, to_pred: np.ndarray, diagonal: float) -> float:
        near = self.tolerance_share * diagonal
        return harmonic_mean([float(np.mean(part <= near)) for part in (to_target, to_pred)])
