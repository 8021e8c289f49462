"""Whether probabilities and uncertainties of masks are right: ECE, Brier score, AUROC of errors."""

from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import Metric

from metrics.per_image import Summary
from metrics.segmentation import Classes, MaskMetric


def class_probabilities(probability: Tensor, num_classes: int) -> Tensor:
    """Probabilities of all classes, (B, K, H, W), of such or of the foreground's alone, (B, H, W), in [0, 1]."""
    if probability.ndim == 3 and num_classes == 2:
        probability = torch.stack([1.0 - probability, probability], dim=1)
    if probability.ndim != 4 or probability.shape[1] != num_classes:
        raise ValueError(
            f"probabilities got shape {tuple(probability.shape)}, expected (B, {num_classes}, H, W), or (B, H, W) of the "
            "foreground with two classes"
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(
            f"probabilities got values from {probability.min():.3g} to {probability.max():.3g}, expected [0, 1]"
        )
    return probability.float()


class ExpectedCalibrationError(Metric):
    """ECE of the most probable class: sum over bins of share |accuracy - confidence| (Guo et al. 2017, eq. 3).

    Bins ((m - 1) / M, m / M], M = num_bins, are filled with the pixels of all images together, void ones left out;
    `classes` are the fields of `Classes`.
    """

    bins: Tensor
    num_images: Tensor

    def __init__(self, *, num_bins: int = 15, **classes: Any) -> None:
        super().__init__()
        self.num_bins, self.classes = num_bins, Classes(**classes)
        self.add_state("bins", torch.zeros(3, num_bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Adds probabilities (B, K, H, W), or of the foreground (B, H, W), and true masks, int64 (B, H, W)."""
        confidence, pred = class_probabilities(probability, self.classes.num_classes).max(dim=1)
        known = self.classes.checked(pred, target)
        confidence = confidence[known].double()
        right = (pred == target)[known].double()
        # The index of the upper limit of each bin, so that 1 / M is in the first and 1 in the last.
        limits = torch.linspace(0, 1, self.num_bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
        where = torch.bucketize(confidence, limits)
        for row, weights in enumerate((torch.ones_like(right), confidence, right)):
            self.bins[row] += torch.bincount(where, weights, minlength=self.num_bins)
        self.num_images += known.flatten(1).any(1).sum()

    def compute(self) -> Summary:
        """The error and the number of images that are not void everywhere; NaN without any."""
        num_pixels, confidence, right = self.bins
        error = (right - confidence).abs().sum() / num_pixels.sum()
        return Summary(error.item(), None, int(self.num_images))


class BrierScore(MaskMetric):
    """Mean over pixels of sum_k (p_k - y_k)^2 (Brier 1950), for two classes halved: (p - y)^2 of the foreground.

    An image that is void everywhere has no value.
    """

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Adds probabilities (B, K, H, W), or of the foreground (B, H, W), and true masks, int64 (B, H, W)."""
        num_classes = self.classes.num_classes
        probability = class_probabilities(probability, num_classes)
        known = self.classes.checked(probability.argmax(1), target)
        truth = one_hot(target.where(known, 0), num_classes).movedim(-1, 1)
        error = (probability - truth.float()).square().sum(1) / (2.0 if num_classes == 2 else 1.0)
        self.keep((error * known).flatten(1).sum(1) / known.flatten(1).sum(1))


class UncertaintyAuroc(MaskMetric):
    """Area under the ROC curve of uncertainty as a score for wrong pixels, of each image.

    The share of pairs of a wrong and a right pixel in which the wrong one is the more uncertain, ties counting half
    (Mann-Whitney): 0.5 by chance, 1 at best. An image without a wrong, or without a right, known pixel has no value.
    """

    def update(self, uncertainty: Tensor, pred: Tensor, target: Tensor) -> None:
        """Adds uncertainties, float (B, H, W) of any scale, and predicted and true masks, int64 (B, H, W)."""
        known = self.classes.checked(pred, target)
        images = zip(uncertainty.double().cpu(), (pred != target).cpu(), known.cpu(), strict=True)
        values = [_auroc(score[wrong & seen], score[~wrong & seen]) for score, wrong, seen in images]
        self.keep(torch.tensor(values, device=self.device))


def _auroc(positive: Tensor, negative: Tensor) -> float:
    num_pairs = len(positive) * len(negative)
    if not num_pairs:
        return float("nan")
    return float(mannwhitneyu(positive, negative, method="asymptotic").statistic) / num_pairs
