"""Metrics of upscaling: PSNR and SSIM of luma, consistency with the small picture and between sizes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from metrics.per_image import PerImageMetric, PicturePairMetric, psnr, structural_similarity, to_8_bit

# ITU-R BT.601 luma of 8-bit R, G, B, on the scale 16..235, as MATLAB's rgb2ycbcr and the field's tables have it.
_LUMA = (65.481 / 255.0, 128.553 / 255.0, 24.966 / 255.0)


def luma(image: Tensor) -> Tensor:
    """Returns Y of BT.601, (B, 1, H, W) in 16..235, of images (B, 3, H, W) in [0, 1], rounded to 8 bit before."""
    weights = torch.tensor(_LUMA, device=image.device).view(1, 3, 1, 1)
    return 16.0 + (to_8_bit(image) * weights).sum(1, keepdim=True)


def resize_bicubic(image: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Returns images (B, 3, H, W) in [0, 1] at (height, width): bicubic, antialiased where it shrinks, clamped."""
    if tuple(image.shape[-2:]) == tuple(size_px):
        return image
    resized = interpolate(image.float(), size=size_px, mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp(0.0, 1.0)


class PsnrY(PicturePairMetric):
    """PSNR in dB of the luma of 8-bit pictures, peak 255, luma unrounded; at most 100."""

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        return psnr(luma(pred).double(), luma(target).double())


class SsimY(PicturePairMetric):
    """SSIM of the luma of 8-bit pictures: Gaussian window of 11, sigma 1.5, range 255."""

    def per_image(self, pred: Tensor, target: Tensor) -> Tensor:
        return structural_similarity(luma(pred), luma(target))


class LowResolutionPsnr(PerImageMetric):
    """PSNR in dB of the result, shrunk as the small picture was, against the small picture: LR consistency."""

    def update(self, whole: Tensor, low: Tensor) -> None:
        """Adds results (B, 3, H, W) and the small pictures that they were made from, (B, 3, h, w), in [0, 1]."""
        self.keep(psnr(to_8_bit(_as_small_as(low, whole)), to_8_bit(low)))


class SelfSsim(PerImageMetric):
    """Mean SSIM of a picture with the same content at other sizes, the larger of two shrunk to the smaller.

    SelfSSIM of Ntavelis et al. 2022 (ScaleParty) and Kim and Kim 2024.
    """

    def update(self, whole: Tensor, other_sizes: Sequence[Tensor]) -> None:
        """Adds pictures (B, 3, H, W) and the same at other sizes, each (B, 3, h, w), in [0, 1]."""
        pairs = [sorted((whole, other), key=lambda picture: picture.shape[-2]) for other in other_sizes]
        values = [
            structural_similarity(to_8_bit(small), to_8_bit(_as_small_as(small, large)))
            for small, large in pairs
        ]
        self.keep(torch.stack(values).mean(0))


def _as_small_as(small: Tensor, large: Tensor) -> Tensor:
    return resize_bicubic(large, (small.shape[-2], small.shape[-1]))
