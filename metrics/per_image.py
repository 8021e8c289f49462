"""Metrics that keep one value per image, so that a result is a mean, a spread over images and a count."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

# PSNR of identical 8-bit pictures is infinite and would swallow the mean; one wrong step in one value of a
# 256-pixel picture is 101 dB.
_PSNR_CEILING_DB = 100.0
_SSIM_WINDOW_PX = 11


class Summary(NamedTuple):
    """A metric over a set of images.

    `std` is the sample standard deviation over images; None where a value belongs to the whole set, or to one image.
    """

    mean: float
    std: float | None
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody needs here


def summarize(values: Tensor) -> Summary:
    """Summarizes one value per image, (N,); without images the mean is NaN and the count 0."""
    values = values.flatten().double().cpu()
    std = values.std(correction=1).item() if values.numel() > 1 else None
    return Summary(values.mean().item(), std, values.numel())


def to_8_bit(image: Tensor) -> Tensor:
    """Returns the image as a viewer gets it: clamped to [0, 1] and rounded to whole steps, as float32 0..255."""
    return image.float().clamp(0.0, 1.0).mul(255.0).round()


def check_pair(pred: Tensor, target: Tensor) -> None:
    """Raises ValueError unless both are (B, 3, H, W) of one shape."""
    if pred.shape != target.shape or pred.ndim != 4 or pred.shape[1] != 3:
        raise ValueError(
            f"an image metric got pred {tuple(pred.shape)} and target {tuple(target.shape)}, expected one shape "
            "(B, 3, H, W); bring both to one size first, for example with the protocol's size_px"
        )


class PerImageMetric(Metric):
    """Base: `update(pred, target)` stores `per_image(pred, target)`, one value per image; DDP gathers them all.

    Subclasses define `per_image`, which takes images (B, 3, H, W) in [0, 1] and returns (B,).

    Example:
        >>> metric = Psnr()
        >>> metric.update(torch.full((2, 3, 16, 16), 0.4), torch.full((2, 3, 16, 16), 0.2))
        >>> round(metric.compute().mean, 1), metric.compute().count
        (14.0, 2)
    """

    is_differentiable = False
    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        """One value per image, (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must define per_image(pred, target) -> (B,)")

    @torch.no_grad()
    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds a batch of image pairs (B, 3, H, W) in [0, 1]."""
        check_pair(pred, target)
        self.values.append(self.per_image(pred, target).float())

    def compute(self) -> Summary:
        """Mean, spread and count over all images seen by all processes."""
        return summarize(all_values(self.values))


def all_values(state: list[Tensor] | Tensor) -> Tensor:
    """A list state as one tensor; synchronized states arrive already joined, empty ones as an empty list."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.empty(0)


class Psnr(PerImageMetric):
    """PSNR in dB on 8-bit pictures, over all pixels and channels of each image; at most 100."""

    higher_is_better = True

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        """PSNR of each pair, (B,)."""
        psnr = peak_signal_noise_ratio(
            to_8_bit(pred), to_8_bit(target), data_range=255.0, dim=(1, 2, 3), reduction="none"
        )
        return psnr.clamp(max=_PSNR_CEILING_DB)


class Ssim(PerImageMetric):
    """SSIM (Wang et al. 2004: Gaussian window of 11, sigma 1.5) on 8-bit pictures, mean over R, G and B."""

    higher_is_better = True

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        """SSIM of each pair, (B,)."""
        if min(pred.shape[-2:]) < _SSIM_WINDOW_PX:
            raise ValueError(
                f"SSIM got images of {pred.shape[-2]} x {pred.shape[-1]} pixels, expected at least "
                f"{_SSIM_WINDOW_PX} on each side; evaluate at a larger size_px"
            )
        ssim = structural_similarity_index_measure(
            to_8_bit(pred), to_8_bit(target), data_range=255.0, reduction="none"
        )
        assert isinstance(ssim, Tensor)
        return ssim.reshape(len(pred))
