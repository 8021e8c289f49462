"""Generation: pictures from noise or a caption, measured as a set against a set of photos."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torchmetrics import Metric

from metrics.distribution import FrechetDistance, KernelDistance
from metrics.resolution import SelfSsim
from tasks.base import Column, Results, Task, as_picture, batch_entry, main_result

SET_COLUMNS = (
    Column("fid", "FID", 2, "lower", "Frechet distance of Inception features"),
    Column("kid", "KID", 4, "lower", "kernel distance of Inception features"),
    Column("frechet_squeezenet", "Frechet (SqueezeNet)", 3, "lower", "not FID"),
    Column("kernel_squeezenet", "kernel (SqueezeNet)", 4, "lower", "not KID"),
)


def frechet_metric(backbone: str, weights_dir: str | None) -> dict[str, Callable[[], Metric]]:
    """The Frechet distance on a backbone, under the name that this gives it: only Inception's is FID."""
    key = "fid" if backbone == "inception" else f"frechet_{backbone}"
    return {key: partial(FrechetDistance, backbone, weights_dir=weights_dir)}


def set_metrics(backbone: str, weights_dir: str | None) -> dict[str, Callable[[], Metric]]:
    """Frechet and kernel distance on a backbone, under the names that it gives them: only Inception's are FID and KID."""
    key = "kid" if backbone == "inception" else f"kernel_{backbone}"
    kernel = partial(KernelDistance, backbone, weights_dir=weights_dir)
    return frechet_metric(backbone, weights_dir) | {key: kernel}


@dataclass(frozen=True, kw_only=True)
class Generation(Task):
    """On which features the sets are compared; no generated picture is compared with a single photo."""

    name: ClassVar[str] = "generation"
    columns: ClassVar[tuple[Column, ...]] = (
        *SET_COLUMNS,
        Column("self_ssim", "SelfSSIM", 3, "higher", "similarity of one content at several sizes"),
    )

    fid_backbone: str = "inception"
    """"inception" is FID and KID, any other backbone a distance under its own name (see `feature_network`)."""
    weights_dir: str | None = None
    """Folder with the weights of a backbone other than "inception"."""

    def metrics(self) -> dict[str, Callable[[], Metric]]:
        return {**set_metrics(self.fid_backbone, self.weights_dir), "self_ssim": SelfSsim}

    def arguments(self, results: Results, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The generated pictures, as many photos, and the same pictures at other sizes where a method decodes them."""
        drawn = as_picture(main_result(results))
        given: dict[str, Any] = {"pred": drawn, "target": batch_entry(batch, "image")}
        if "other_sizes" in results:
            given |= {
                "whole": drawn,
                "other_sizes": [as_picture(picture) for picture in results["other_sizes"]],
            }
        return given
