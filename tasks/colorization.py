"""Colorization: a grey picture in colours, measured against its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from color.gamut import clip_chroma
from color.lab import grey_image, lightness, rgb_to_lab
from metrics.color import (
    Colorfulness,
    ColorfulnessDifference,
    ColorfulnessVariant,
    DeltaE2000,
    DifferenceConvention,
    LightnessError,
)
from metrics.per_image import check_pair
from metrics.perceptual import SqueezeNetDistance
from tasks.base import Column, Results
from tasks.generation import frechet_metric
from tasks.reconstruction import PAIR_COLUMNS, PairTask, pair_metrics

Crop = Literal["center", "resize"]

_MEAN_COLOUR_PHOTOS = 1000
# Picture size and crop of the named protocols.
_PREPARED: dict[str, tuple[int, Crop]] = {"val5k": (256, "center"), "val50k": (256, "resize")}


@dataclass(frozen=True, kw_only=True)
class Colorization(PairTask):
    """How pictures are prepared and which variant of each metric is taken; see docs/metrics.md for the traps."""

    name: ClassVar[str] = "colorization"
    columns: ClassVar[tuple[Column, ...]] = (
        *PAIR_COLUMNS,
        Column("delta_e2000", "CIEDE2000", 2, "lower", "colour difference; 1 is about just noticeable"),
        Column("lightness_error", "|dL*|", 3, "lower", "error of lightness, 0 to 100"),
        Column("colorfulness", "colourfulness", 1, None, "of the result alone; compare with the truth's"),
        Column("colorfulness_difference", "d colourfulness", 2, "lower", "from the truth's colourfulness"),
        Column("fid", "FID", 2, "lower", "Frechet distance of Inception features"),
        Column("frechet_squeezenet", "Frechet (SqueezeNet)", 3, "lower", "not FID"),
        Column("feature_distance_squeezenet", "features (SqueezeNet)", 3, "lower", "not LPIPS"),
    )

    protocol: Literal["own", "val5k", "val50k"] = "own"
    """Sets size_px and crop: "val5k" 256 and "center", "val50k" 256 and "resize"; "own" leaves both to be given."""
    size_px: int | None = None
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
    fid_backbone: str = "inception"
    """"inception" is FID, any other backbone a Frechet distance under its own name (see `FrechetDistance`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol in _PREPARED:
            size_px, crop = _PREPARED[self.protocol]
            if self.size_px not in (None, size_px):
                raise ValueError(
                    f"colorization protocol {self.protocol!r} got size_px={self.size_px}, but is defined at {size_px}; "
                    "leave size_px out, or take protocol=own"
                )
            object.__setattr__(self, "size_px", size_px)
            object.__setattr__(self, "crop", crop)
        if self.size_px is not None and self.size_px < 11:
            raise ValueError(
                f"colorization protocol {self.protocol!r} got size_px={self.size_px}, expected at least 11 (SSIM's "
                "window) or null for the pictures' own size"
            )

    def as_measured(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The config of a data module that delivers pictures of the protocol's size and crop."""
        if self.size_px is None:
            return dict(data)
        if self.crop != "center" and "eval_crop" not in data:
            raise ValueError("crop=resize squeezes whole photos, which only datamodule=photos can")
        crop = {"eval_crop": self.crop} if "eval_crop" in data else {}
        return {**data, "size_px": self.size_px, **crop}

    def prepare(self, image: Tensor) -> Tensor:
        """Returns images (B, 3, H, W) in [0, 1] cropped and resized (bilinear, antialiased) as the protocol says."""
        if self.size_px is None:
            return image
        if self.crop == "center":
            height, width = image.shape[-2:]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            image = image[..., top : top + side, left : left + side]
        size = (self.size_px, self.size_px)
        if tuple(image.shape[-2:]) == size:
            return image
        return F.interpolate(image.float(), size=size, mode="bilinear", antialias=True).clamp(0.0, 1.0)

    def metrics(self) -> dict[str, Callable[[], Metric]]:
        """Every colorization metric; feature_distance_squeezenet only with weights_dir."""
        variant = self.colorfulness_variant
        builders: dict[str, Callable[[], Metric]] = {
            **pair_metrics(self.lpips_net, self.weights_dir),
            "delta_e2000": DeltaE2000,
            "lightness_error": LightnessError,
            "colorfulness": partial(Colorfulness, variant),
            "colorfulness_difference": partial(ColorfulnessDifference, variant, self.colorfulness_difference),
            **frechet_metric(self.fid_backbone, self.weights_dir),
        }
        if self.weights_dir is not None:
            builders["feature_distance_squeezenet"] = partial(SqueezeNetDistance, self.weights_dir)
        return builders

    def arguments(self, results: Results, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Results and true pictures as the protocol prepares them."""
        given = super().arguments(results, batch)
        check_pair(given["pred"], given["target"])
        return {name: self.prepare(image) for name, image in given.items()}

    def fit(self, train_dataset: Any) -> Tensor:
        """Mean ab (2,) of at most about 1000 train photos, evenly spaced."""
        step = max(1, len(train_dataset) // _MEAN_COLOUR_PHOTOS)
        photos = (train_dataset[i]["image"][None] for i in range(0, len(train_dataset), step))
        return torch.stack([rgb_to_lab(photo)[0, 1:].mean((1, 2)) for photo in photos]).mean(0)

    def baselines(self, batch: Mapping[str, Any], fitted: Tensor | None = None) -> dict[str, Results]:
        """Grey, and the mean colour of the train split everywhere."""
        given = lightness(self.truth(batch))
        rows: dict[str, Results] = {"grey": {"image": grey_image(given)}}
        if fitted is not None:
            chroma = fitted.to(given).view(1, 2, 1, 1).expand(len(given), -1, *given.shape[-2:])
            rows["mean colour"] = {"image": clip_chroma(torch.cat([given * 100, chroma], dim=1))}
        return rows
