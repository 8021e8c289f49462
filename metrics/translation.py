"""Metrics of translation between domains: the way back, what is kept of the input, how much samples differ."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from metrics.per_image import PerImageMetric, check_pair, psnr, to_8_bit
from metrics.perceptual import LpipsMetric


class CyclePsnr(PerImageMetric):
    """PSNR in dB of the translation back into the input's domain against the input; at most 100."""

    def update(self, cycle: Tensor, image: Tensor) -> None:
        """Adds translations there and back, and the inputs, (B, 3, H, W) in [0, 1]."""
        check_pair(cycle, image)
        self.keep(psnr(to_8_bit(cycle), to_8_bit(image)))


class ContentDistance(LpipsMetric):
    """LPIPS between a result and its input: what a translation changes. 0 for the input itself, so no aim alone."""

    def update(self, pred: Tensor, image: Tensor) -> None:
        """Adds results and their inputs, (B, 3, H, W) in [0, 1]."""
        check_pair(pred, image)
        self.keep(self.per_image(pred, image))


class CondError(PerImageMetric):
    """Mean absolute difference between a condition and the same condition made anew from the result, in [0, 1]."""

    def update(self, cond: Tensor, cond_again: Tensor) -> None:
        """Adds conditions (B, C, H, W) in [0, 1] and those made from the results."""
        if cond.shape != cond_again.shape:
            raise ValueError(
                f"conditions have the shapes {tuple(cond.shape)} and {tuple(cond_again.shape)}, expected one"
            )
        self.keep((cond - cond_again).abs().flatten(1).mean(1))


class LpipsDiversity(LpipsMetric):
    """Mean LPIPS over all pairs of samples of one input (Zhu et al. 2017, BicycleGAN); 0 if all are equal."""

    def update(self, samples: Sequence[Tensor]) -> None:
        """Adds the samples of a batch, two or more pictures (B, 3, H, W) in [0, 1]."""
        pairs = [self.per_image(first, second) for first, second in combinations(samples, 2)]
        self.keep(torch.stack(pairs).mean(0))
