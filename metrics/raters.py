"""Agreement of several samples of a mask with the masks of several raters."""

from collections.abc import Sequence
from math import lcm
from typing import Any

import torch
from einops import rearrange
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from metrics.segmentation import Classes, MaskMetric, iou, mean_over_classes


def pairwise_iou(first: Tensor, second: Tensor, **classes: Any) -> Tensor:
    """Returns IoU of every pair of masks, (N, M), of first (N, H, W) and second (M, H, W), int64 class ids.

    Mean over the classes in either mask, 1 if there is none; pixels that are void in either do not count. `classes` are
    the fields of `Classes`.
    """
    which = Classes(**classes)
    known = [which.known(ids) for ids in (first, second)]
    masks = [which.masks(ids, seen) for ids, seen in zip((first, second), known, strict=True)]
    ours, theirs = (rearrange(mask, "n k h w -> k n (h w)").float() for mask in masks)
    ours_known, theirs_known = (rearrange(seen, "n h w -> n (h w)").float() for seen in known)
    # Sums of at most 2^24 ones are exact in float32.
    scores = iou(ours @ theirs.mT, ours @ theirs_known.mT, ours_known @ theirs.mT)
    return mean_over_classes(rearrange(scores, "k n m -> n m k"))


class RaterMetric(MaskMetric):
    """Base: `update(samples, masks)` keeps for each image what `agreement` says of its samples and raters."""

    leaves_out_undefined = False

    def agreement(self, samples: Tensor, raters: Tensor) -> float:
        """The value of one image: samples (S, H, W), raters (R, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} must define agreement(samples, raters)")

    def update(self, samples: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        """Adds a batch: S samples, each int64 (B, H, W), and the raters of each image, B times int64 (R, H, W)."""
        images = rearrange(list(samples), "s b h w -> b s h w")
        values = [self.agreement(image, raters) for image, raters in zip(images, masks, strict=True)]
        self.keep(torch.tensor(values, device=self.device))


class GeneralizedEnergyDistance(RaterMetric):
    """GED^2 = 2 E d(S, Y) - E d(S, S') - E d(Y, Y') with d = 1 - IoU over all pairs, a mask with itself included.

    Szekely and Rizzo 2013, for segmentation Kohl et al. 2018; 0 for equal sets, at most 2. With few samples the value is
    biased upwards: compare at equal counts.
    """

    def agreement(self, samples: Tensor, raters: Tensor) -> float:
        between, within, among = (
            1.0 - pairwise_iou(first, second, **vars(self.classes)).double().mean()
            for first, second in ((samples, raters), (samples, samples), (raters, raters))
        )
        return float(2.0 * between - within - among)


class HungarianIou(RaterMetric):
    """Mean IoU of samples and raters under the best one-to-one matching (Kohl et al. 2019).

    Both sets are repeated to the least common multiple of their sizes first.
    """

    def agreement(self, samples: Tensor, raters: Tensor) -> float:
        scores = pairwise_iou(samples, raters, **vars(self.classes)).double().cpu()
        count = lcm(*scores.shape)
        repeated = scores.repeat(count // len(scores), count // scores.shape[1]).numpy()
        return float(repeated[linear_sum_assignment(repeated, maximize=True)].mean())
