"""Segmentation: a class for each pixel of a picture, measured against one mask or the masks of several raters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from color.classes import class_colours
from metrics.calibration import BrierScore, ExpectedCalibrationError, UncertaintyAuroc
from metrics.raters import GeneralizedEnergyDistance, HungarianIou
from metrics.segmentation import Overlap, PooledOverlap
from metrics.surface import BoundaryF, HausdorffDistance95, NormalizedSurfaceDistance, surface_distances
from tasks.base import Column, Results, Task, as_picture, batch_entry, first_sample, main_result

_OPACITY = 0.5


@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """What counts as a class, as void, and as near.

    Results: `mask` int64 (B, H, W), the main one; where a method has them `probability`, float (B, H, W) of the
    foreground or (B, K, H, W) or K times (B, H, W) of all classes, `uncertainty`, float (B, H, W), and `samples`, int64 (B, H, W) each; several
    samples of `mask` are taken as these.
    """

    name: ClassVar[str] = "segmentation"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("dice", "Dice", 3, "higher", "of each image, mean over its classes"),
        Column("iou", "IoU", 3, "higher", "of each image, mean over its classes"),
        Column("dice_pooled", "Dice pooled", 3, "higher", "over the pixels of all images"),
        Column("iou_pooled", "IoU pooled", 3, "higher", "over the pixels of all images: mIoU"),
        Column("hd95", "HD95", 2, "lower", "95th percentile of boundary distances, in the spacing's unit"),
        Column("nsd", "NSD", 3, "higher", "share of the boundaries within the tolerance"),
        Column("boundary_f", "boundary F", 3, "higher", "harmonic mean of boundary precision and recall"),
        Column("ece", "ECE", 4, "lower", "calibration error of the most probable class"),
        Column("brier", "Brier", 4, "lower", "squared error of the probabilities"),
        Column("uncertainty_auroc", "AUROC unc.", 3, "higher", "uncertainty as a score for wrong pixels"),
        Column("ged", "GED^2", 3, "lower", "energy distance of samples and raters"),
        Column("hungarian_iou", "HM-IoU", 3, "higher", "IoU of samples matched to raters"),
    )

    needs: ClassVar[tuple[str, ...]] = ("image", "mask")

    num_classes: int = 2
    """With the background, class 0."""
    ignore_index: int | None = None
    """Id of void pixels in the truth; None if there are none."""
    include_background: bool = False
    """Whether class 0 counts as the others do: true where it is a class of its own, such as sky."""
    spacing: tuple[float, float] = (1.0, 1.0)
    """Height and width of a pixel, for hd95, nsd and boundary_f."""
    tolerance: float = 1.0
    """Of nsd, in the unit of the spacing."""
    boundary_tolerance: float = 0.0075
    """Of boundary_f, as a share of the image's diagonal (Csurka et al. 2013)."""
    num_bins: int = 15
    """Of ece."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "spacing", tuple(map(float, self.spacing)))  # a config gives a list
        if self.num_classes < 2:
            raise ValueError(
                f"segmentation protocol got num_classes={self.num_classes}, expected at least 2, the background included"
            )
        if len(self.spacing) != 2 or min(self.spacing) <= 0:
            raise ValueError(
                f"segmentation protocol got spacing={self.spacing}, expected height and width of a pixel, above 0"
            )

    @classmethod
    def for_data(cls, datamodule: Any, **protocol: Any) -> "Segmentation":
        """The task with the classes and the void id of the data set, where it says them and the protocol does not."""
        datasets = (getattr(datamodule, f"{split}_dataset", None) for split in ("test", "val", "train"))
        given = (getattr(dataset, "classes", None) for dataset in datasets)
        classes = next(filter(None, given), None)
        if classes is not None:
            protocol = {"num_classes": len(classes.names), "ignore_index": classes.ignore_index} | protocol
        return cls(**protocol)

    @property
    def classes(self) -> dict[str, Any]:
        """The fields of `metrics.segmentation.Classes`."""
        return {key: getattr(self, key) for key in ("num_classes", "ignore_index", "include_background")}

    def metrics(self) -> dict[str, Callable[[], Metric]]:
        classes = self.classes
        return {
            "dice": partial(Overlap, "dice", **classes),
            "iou": partial(Overlap, "iou", **classes),
            "dice_pooled": partial(PooledOverlap, "dice", **classes),
            "iou_pooled": partial(PooledOverlap, "iou", **classes),
            "hd95": HausdorffDistance95,
            "nsd": partial(NormalizedSurfaceDistance, self.tolerance),
            "boundary_f": partial(BoundaryF, self.boundary_tolerance),
            "ece": partial(ExpectedCalibrationError, num_bins=self.num_bins, **classes),
            "brier": partial(BrierScore, **classes),
            "uncertainty_auroc": partial(UncertaintyAuroc, **classes),
            "ged": partial(GeneralizedEnergyDistance, **classes),
            "hungarian_iou": partial(HungarianIou, **classes),
        }

    def arguments(self, results: Results, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Masks, their boundaries, and of probability, uncertainty, samples and raters what there is."""
        given: dict[str, Any] = {"pred": main_result(results), "target": batch_entry(batch, "mask")}
        given["surfaces"] = surface_distances(**given, spacing=self.spacing, **self.classes)
        if "uncertainty" in results:
            given["uncertainty"] = first_sample(results["uncertainty"])
        if "probability" in results:
            probability = results["probability"]
            given["probability"] = (
                probability if isinstance(probability, Tensor) else torch.stack(list(probability), 1)
            )
        samples = results.get("samples", next(iter(results.values())))
        if not isinstance(samples, Tensor):
            given["samples"] = list(samples)
        if "masks" in batch:
            given["masks"] = list(batch["masks"])
        return given

    def baselines(self, batch: Mapping[str, Any], fitted: Any | None = None) -> dict[str, Results]:
        """Background everywhere."""
        return {"all background": {"mask": torch.zeros_like(batch_entry(batch, "mask"))}}

    def picture(self, results: Results, batch: Mapping[str, Any]) -> Tensor:
        """The main mask over the picture, one colour a class; void pixels are left as they are."""
        return self._overlay(main_result(results), batch)

    def truth(self, batch: Mapping[str, Any]) -> Tensor:
        """The true mask over the picture, likewise."""
        return self._overlay(batch_entry(batch, "mask"), batch)

    def _overlay(self, mask: Tensor, batch: Mapping[str, Any]) -> Tensor:
        image = as_picture(batch_entry(batch, "image")).to(mask.device)
        shown = (mask >= (0 if self.include_background else 1)) & (mask < self.num_classes)
        colours = class_colours(self.num_classes).to(mask.device)[mask.where(shown, 0)].movedim(-1, 1)
        return torch.lerp(image, colours, _OPACITY).where(shown[:, None], image)
