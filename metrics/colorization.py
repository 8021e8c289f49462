"""All colorization metrics under one named protocol, so that a number says how it was made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from metrics.color import (
    Colorfulness,
    ColorfulnessDifference,
    ColorfulnessVariant,
    DeltaE2000,
    DifferenceConvention,
    LightnessError,
)
from metrics.distribution import FrechetBackbone, FrechetDistance
from metrics.per_image import Psnr, Ssim, Summary, check_pair
from metrics.perceptual import Lpips, SqueezeNetDistance
from metrics.weights import LpipsNet, MissingWeightsError

Crop = Literal["center", "resize"]


@dataclass(frozen=True, kw_only=True)
class ColorizationProtocol:
    """How pictures are prepared and which variant of each metric is taken; see docs/metrics.md for the traps."""

    name: str = "val5k"
    """Written beside every result."""
    size_px: int | None = 256
    """Pictures are evaluated as squares of this side; None leaves them as they are."""
    crop: Crop = "center"
    """"center": the largest central square, then resized (ImageNet val5k); "resize": squeezed to a square (val50k,
    COCO-Stuff, ADE20K)."""
    colorfulness_variant: ColorfulnessVariant = "absolute"
    """"absolute" as in the code of CT2 and DDColor, "hasler" as in the original paper."""
    colorfulness_difference: DifferenceConvention = "of_means"
    """"of_means" as in DDColor's table, or "per_image"."""
    fid_reference: Literal["same"] = "same"
    """The reference set: the same pictures in colour (CT2, DDColor; a perfect result scores 0)."""
    fid_backbone: FrechetBackbone = "inception"
    """"inception" is FID, "squeezenet" the Frechet distance of another backbone under another name."""
    lpips_net: LpipsNet = "alex"
    """LPIPS backbone."""
    weights_dir: str | None = None
    """Folder with SqueezeNet 1.1 weights; adds feature_distance_squeezenet."""

    def __post_init__(self) -> None:
        options = {
            "crop": get_args(Crop),
            "colorfulness_variant": get_args(ColorfulnessVariant),
            "colorfulness_difference": get_args(DifferenceConvention),
            "fid_reference": ("same",),
            "fid_backbone": get_args(FrechetBackbone),
            "lpips_net": get_args(LpipsNet),
        }
        for key, allowed in options.items():
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"colorization protocol {self.name!r} got {key}={getattr(self, key)!r}, expected one of "
                    f"{', '.join(allowed)}"
                )
        if self.size_px is not None and self.size_px < 11:
            raise ValueError(
                f"colorization protocol {self.name!r} got size_px={self.size_px}, expected at least 11 (SSIM's window) "
                "or null for the pictures' own size"
            )

    def prepare(self, image: Tensor) -> Tensor:
        """Returns images (B, 3, H, W) in [0, 1] cropped and resized (bilinear, antialiased) as the protocol says."""
        if self.size_px is None:
            return image
        if self.crop == "center":
            height, width = image.shape[-2:]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            image = image[..., top : top + side, left : left + side]
        if tuple(image.shape[-2:]) == (self.size_px, self.size_px):
            return image
        size = (self.size_px, self.size_px)
        resized = F.interpolate(
            image.float(), size=size, mode="bilinear", align_corners=False, antialias=True
        )
        return resized.clamp(0.0, 1.0)


class ColorizationMetrics:
    """Collects every colorization metric that this machine can compute.

    A metric whose weights are missing is left out and explained in `skipped`; it never stops an evaluation. Metrics
    gather over processes by themselves when torch.distributed runs.

    Args:
        protocol: see `ColorizationProtocol`.
        device: where features and states live; None for the CPU.

    Attributes:
        skipped: metric name -> one sentence with reason and remedy.

    Example:
        >>> metrics = ColorizationMetrics(ColorizationProtocol(size_px=None))
        >>> metrics.update(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
        >>> metrics.compute()["psnr"].count
        2
    """

    def __init__(self, protocol: ColorizationProtocol, device: torch.device | str | None = None) -> None:
        self.protocol = protocol
        self.skipped: dict[str, str] = {}
        self._device = torch.device("cpu" if device is None else device)
        self._metrics: dict[str, Metric] = {}
        for name, build in self._builders().items():
            try:
                self._metrics[name] = build().to(self._device)
            except MissingWeightsError as error:
                self.skipped[name] = str(error)

    @torch.no_grad()
    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds results and true pictures (B, 3, H, W) in [0, 1] of one size.

        Raises:
            ValueError: if the shapes differ or the pictures are too small for SSIM.
        """
        check_pair(pred, target)
        pred, target = (self.protocol.prepare(image.to(self._device)) for image in (pred, target))
        for metric in self._metrics.values():
            if isinstance(metric, Colorfulness):
                metric.update(pred)
            else:
                metric.update(pred, target)

    def compute(self) -> dict[str, Summary]:
        """Returns every metric over all pictures seen; a set too small for a metric moves it to `skipped`."""
        results = {}
        for name, metric in self._metrics.items():
            try:
                results[name] = metric.compute()
            except ValueError as error:
                self.skipped[name] = str(error)
        return results

    def reset(self) -> None:
        """Forgets all pictures."""
        for metric in self._metrics.values():
            metric.reset()

    def _builders(self) -> dict[str, Callable[[], Metric]]:
        protocol = self.protocol
        variant = protocol.colorfulness_variant
        frechet = "fid" if protocol.fid_backbone == "inception" else "frechet_squeezenet"
        builders: dict[str, Callable[[], Metric]] = {
            "psnr": Psnr,
            "ssim": Ssim,
            "lpips": lambda: Lpips(protocol.lpips_net),
            "delta_e2000": DeltaE2000,
            "lightness_error": LightnessError,
            "colorfulness": lambda: Colorfulness(variant),
            "colorfulness_difference": lambda: ColorfulnessDifference(
                variant, protocol.colorfulness_difference
            ),
            frechet: lambda: FrechetDistance(protocol.fid_backbone, weights_dir=protocol.weights_dir),
        }
        if protocol.weights_dir is not None:
            builders["feature_distance_squeezenet"] = lambda: SqueezeNetDistance(protocol.weights_dir)
        return builders
