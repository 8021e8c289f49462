"""Reconstruction: a picture encoded and decoded, measured against itself; and what tasks with a true picture share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import Metric

from metrics.per_image import Psnr, Ssim
from metrics.perceptual import Lpips
from metrics.weights import LpipsNet
from tasks.base import Column, Results, Task, as_picture, batch_entry, main_result
from tasks.generation import frechet_metric

PAIR_COLUMNS = (
    Column("psnr", "PSNR", 2, "higher", "dB over pixels and channels"),
    Column("ssim", "SSIM", 3, "higher", "structural similarity of R, G and B"),
    Column("lpips", "LPIPS", 3, "lower", "distance of pretrained features"),
)


def pair_metrics(lpips_net: LpipsNet, weights_dir: str | None) -> dict[str, Callable[[], Metric]]:
    """PSNR, SSIM and LPIPS."""
    return {"psnr": Psnr, "ssim": Ssim, "lpips": partial(Lpips, lpips_net, weights_dir=weights_dir)}


@dataclass(frozen=True, kw_only=True)
class PairTask(Task):
    """A task whose results are pictures with the batch's `image` as their truth."""

    lpips_net: LpipsNet = "alex"
    """LPIPS backbone."""
    weights_dir: str | None = None
    """Folder with LPIPS, SqueezeNet or timm weights."""

    def arguments(self, results: Results, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {"pred": as_picture(main_result(results)), "target": self.truth(batch)}

    def truth(self, batch: Mapping[str, Any]) -> Tensor:
        """The true pictures, (B, 3, H, W) in [0, 1]."""
        return batch_entry(batch, "image")


@dataclass(frozen=True, kw_only=True)
class Reconstruction(PairTask):
    """Which networks LPIPS and the Frechet distance use."""

    name: ClassVar[str] = "reconstruction"
    columns: ClassVar[tuple[Column, ...]] = (
        *PAIR_COLUMNS,
        Column("fid", "rFID", 2, "lower", "Frechet distance of Inception features"),
        Column("frechet_squeezenet", "Frechet (SqueezeNet)", 3, "lower", "not FID"),
    )

    fid_backbone: str = "inception"
    """"inception" is FID, any other backbone a distance under its own name (see `feature_network`)."""

    def metrics(self) -> dict[str, Callable[[], Metric]]:
        pairs = pair_metrics(self.lpips_net, self.weights_dir)
        return pairs | frechet_metric(self.fid_backbone, self.weights_dir)
