"""Metrics that keep one value per image, so that a result is a mean, a spread over images and a count."""

from typing import ClassVar, NamedTuple

import numpy as np
from scipy.stats import bootstrap
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.utilities.data import dim_zero_cat

# PSNR of identical 8-bit pictures is infinite and would swallow the mean; one wrong step in one value of a
# 256-pixel picture is 101 dB.
_PSNR_CEILING_DB = 100.0
_SSIM_WINDOW_PX = 11
_BOOTSTRAP_NUMBERS = 2**21  # drawn at a time


class Summary(NamedTuple):
    """A metric over a set of images.

    `std` is the sample standard deviation over images, `interval` the 95 % percentile bootstrap of the mean (low, high);
    None where a value belongs to the whole set, or to fewer than two images, and the interval where one is not finite.
    """

    mean: float
    std: float | None
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody needs here
    interval: tuple[float, float] | None = None


def summarize(values: Tensor) -> Summary:
    """Summarizes one value per image, (N,); without images the mean is NaN and the count 0."""
    values = values.flatten().double().cpu()
    count = values.numel()
    std = values.std(correction=1).item() if count > 1 else None
    interval = bootstrap_interval(values) if count > 1 and values.isfinite().all() else None
    return Summary(values.mean().item(), std, count, interval)


def bootstrap_interval(values: Tensor, *, num_resamples: int = 2000) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of values (N,), N at least 2 (Efron 1979).

    The same values in the same order give the same interval; at most about 64 MiB are in use.
    """
    drawn = bootstrap(
        (values.double().cpu().numpy(),),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, _BOOTSTRAP_NUMBERS // values.numel()),
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def to_8_bit(image: Tensor) -> Tensor:
    """Returns the image as a viewer gets it: clamped to [0, 1] and rounded to whole steps, as float32 0..255."""
    return image.float().clamp(0.0, 1.0).mul(255.0).round()


def check_pair(pred: Tensor, target: Tensor, *, are_sets: bool = False) -> None:
    """Raises ValueError unless both are (B, 3, H, W) of one shape; of sets B may differ."""
    shapes = [picture.shape[are_sets:] for picture in (pred, target)]
    if shapes[0] != shapes[1] or pred.ndim != 4 or pred.shape[1] != 3:
        raise ValueError(
            f"an image metric got pred {tuple(pred.shape)} and target {tuple(target.shape)}, expected one shape "
            "(B, 3, H, W); bring both to one size first, for example with the protocol's size_px"
        )


class PerImageMetric(Metric):
    """Base: `update` calls `keep` with one value per image, and DDP gathers them all.

    NaN, a value undefined, is in no mean and no count where the subclass sets `leaves_out_undefined`.
    """

    full_state_update = False
    leaves_out_undefined: ClassVar[bool] = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def keep(self, values: Tensor) -> None:
        """Stores one value per image, (B,)."""
        self.values.append(values.float())

    def all_values(self) -> Tensor:
        """One value per image seen so far, (N,); those of all processes inside `compute`."""
        return dim_zero_cat(self.values)

    def compute(self) -> Summary:
        """Mean, spread and count over all images seen by all processes."""
        values = self.all_values()
        return summarize(values[~values.isnan()] if self.leaves_out_undefined else values)


class PicturePairMetric(PerImageMetric):
    """Base: `update(pred, target)` stores `per_image(pred, target)`.

    Example:
        >>> import torch
        >>> metric = Psnr()
        >>> metric.update(torch.full((2, 3, 16, 16), 0.4), torch.full((2, 3, 16, 16), 0.2))
        >>> round(metric.compute().mean, 1), metric.compute().count
        (14.0, 2)
    """

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        """One value per image, (B,), of images (B, 3, H, W) in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} must define per_image(pred, target) -> (B,)")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds a batch of image pairs (B, 3, H, W) in [0, 1]."""
        check_pair(pred, target)
        self.keep(self.per_image(pred, target))


class Psnr(PicturePairMetric):
    """PSNR of 8-bit pictures, see `psnr`."""

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        return psnr(to_8_bit(pred), to_8_bit(target))


class Ssim(PicturePairMetric):
    """SSIM of 8-bit pictures, mean over R, G and B, see `structural_similarity`."""

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        return structural_similarity(to_8_bit(pred), to_8_bit(target))


def psnr(pred: Tensor, target: Tensor) -> Tensor:
    """PSNR in dB over all pixels and channels, at most 100, (B,), of pictures (B, C, H, W) in 0..255."""
    values = peak_signal_noise_ratio(pred, target, data_range=255.0, dim=(1, 2, 3), reduction="none")
    return values.clamp(max=_PSNR_CEILING_DB)


def structural_similarity(pred: Tensor, target: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004: Gaussian window of 11, sigma 1.5), (B,), of pictures (B, C, H, W) in 0..255."""
    if min(pred.shape[-2:]) < _SSIM_WINDOW_PX:
        raise ValueError(
            f"SSIM got images of {pred.shape[-2]} x {pred.shape[-1]} pixels, expected at least "
            f"{_SSIM_WINDOW_PX} on each side; evaluate at a larger size_px"
        )
    return structural_similarity_index_measure(pred, target, data_range=255.0, reduction="none")
