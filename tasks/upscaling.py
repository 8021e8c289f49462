"""Upscaling: a small picture at a larger size, measured against the picture that it was made from."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import Metric

from metrics.per_image import check_pair, to_8_bit
from metrics.resolution import LowResolutionPsnr, PsnrY, SelfSsim, SsimY, resize_bicubic
from tasks.base import Column, Results, as_picture, batch_entry
from tasks.reconstruction import PAIR_COLUMNS, PairTask, pair_metrics


@dataclass(frozen=True, kw_only=True)
class Upscaling(PairTask):
    """How small pictures are made and how much of the border is left out.

    Results: the upscaled picture, the main one; where a method decodes one latent at several sizes `other_sizes`, the
    same picture at other sizes. The small pictures are `batch["low"]` where there is one, else `low(batch)`.
    """

    name: ClassVar[str] = "upscaling"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("psnr_y", "PSNR-Y", 2, "higher", "dB of luma"),
        Column("ssim_y", "SSIM-Y", 4, "higher", "structural similarity of luma"),
        *PAIR_COLUMNS,
        Column("lr_psnr", "LR PSNR", 2, "higher", "dB of the result shrunk again, against the small picture"),
        Column("self_ssim", "SelfSSIM", 3, "higher", "similarity of one content at several sizes"),
    )

    scale: float = 4.0
    """Side of the true picture over side of the small one; sides are rounded."""
    border_px: int | None = None
    """Pixels left out at each side of both pictures in all but lr_psnr and self_ssim; None: the scale, rounded up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0:
            raise ValueError(f"upscaling protocol got scale={self.scale}, expected more than 0")
        if self.border_px is None:
            object.__setattr__(self, "border_px", math.ceil(self.scale))
        elif self.border_px < 0:
            raise ValueError(f"upscaling protocol got border_px={self.border_px}, expected 0 or more")

    def metrics(self) -> dict[str, Callable[[], Metric]]:
        return {
            "psnr_y": PsnrY,
            "ssim_y": SsimY,
            **pair_metrics(self.lpips_net, self.weights_dir),
            "lr_psnr": LowResolutionPsnr,
            "self_ssim": SelfSsim,
        }

    def posed(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """With the small pictures as `low`, so that every method and baseline starts from the same."""
        return {**batch, "low": self.low(batch)}

    def low(self, batch: Mapping[str, Any]) -> Tensor:
        """The small pictures (B, 3, h, w): given, or the true ones shrunk (bicubic, antialiased, 8 bits)."""
        if "low" in batch:
            return batch_entry(batch, "low")
        image = self.truth(batch)
        height, width = (max(1, round(side / self.scale)) for side in image.shape[-2:])
        return to_8_bit(resize_bicubic(image, (height, width))) / 255

    def arguments(self, results: Results, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Results and truth without their borders, the whole results, the small pictures, and other sizes."""
        whole = super().arguments(results, batch)
        check_pair(whole["pred"], whole["target"])
        height, width = whole["pred"].shape[-2:]
        border = self.border_px or 0
        if min(height, width) <= 2 * border:
            raise ValueError(
                f"pictures of {height} x {width} pixels have nothing inside a border of {border}; set a smaller "
                "protocol.border_px"
            )
        inside = (..., slice(border, height - border), slice(border, width - border))
        given = {name: image[inside] for name, image in whole.items()}
        given |= {"whole": whole["pred"], "low": self.low(batch)}
        if "other_sizes" in results:
            given["other_sizes"] = [as_picture(picture) for picture in results["other_sizes"]]
        return given

    def baselines(self, batch: Mapping[str, Any], fitted: Any | None = None) -> dict[str, Results]:
        """Bicubic interpolation of the small picture."""
        height, width = self.truth(batch).shape[-2:]
        return {"bicubic": {"image": resize_bicubic(self.low(batch), (height, width))}}
