"""Overlap of class masks: Dice and intersection over union, per image and pooled over the set.

Everywhere a class counts in an image if it is in the truth or in the prediction; void pixels belong to no class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from metrics.per_image import PerImageMetric, Summary


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Which class ids there are, and which of them count."""

    num_classes: int = 2
    """With the background, class 0."""
    ignore_index: int | None = None
    """Id of void pixels in the truth; None if there are none."""
    include_background: bool = False
    """Whether class 0 counts as the others do, where a metric is a mean over classes."""

    def known(self, ids: Tensor) -> Tensor:
        """Where ids of any shape are not void."""
        if self.ignore_index is None:
            return torch.ones_like(ids, dtype=torch.bool)
        return ids != self.ignore_index

    def checked(self, pred: Tensor, target: Tensor) -> Tensor:
        """Returns where the truth is not void, bool (B, H, W); ValueError unless both are masks of these classes."""
        are_ids = not (pred.is_floating_point() or target.is_floating_point())
        if pred.shape != target.shape or pred.ndim != 3 or not are_ids:
            raise ValueError(
                f"a mask metric got pred {pred.dtype} {tuple(pred.shape)} and target {target.dtype} "
                f"{tuple(target.shape)}, expected class ids, int64 (B, H, W), of one shape"
            )
        known = self.known(target)
        for name, ids in (("pred", pred), ("target", target[known])):
            outside = ids[(ids < 0) | (ids >= self.num_classes)]
            if outside.numel():
                raise ValueError(
                    f"a mask metric got class {int(outside[0])} in {name}, expected 0 to {self.num_classes - 1}; set "
                    "protocol.num_classes, or protocol.ignore_index for void pixels"
                )
        return known

    def masks(self, ids: Tensor, known: Tensor) -> Tensor:
        """One mask a class that counts, bool (B, K, H, W), of ids (B, H, W); false in void pixels."""
        classes = torch.arange(0 if self.include_background else 1, self.num_classes, device=ids.device)
        return (ids[:, None] == classes.view(1, -1, 1, 1)) & known[:, None]

    def sizes(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels of each class in both, in pred and in target, float64 (3, B, K); and whether images have known ones."""
        known = self.checked(pred, target)
        ours, theirs = self.masks(pred, known), self.masks(target, known)
        return torch.stack([ours & theirs, ours, theirs]).flatten(3).sum(3).double(), known.flatten(1).any(1)


def dice(intersection: Tensor, pred_size: Tensor, target_size: Tensor) -> Tensor:
    """2 |A and B| / (|A| + |B|) (Dice 1945); NaN if both are empty."""
    return 2.0 * intersection / (pred_size + target_size)


def iou(intersection: Tensor, pred_size: Tensor, target_size: Tensor) -> Tensor:
    """|A and B| / |A or B| (Jaccard 1912); NaN if both are empty."""
    return intersection / (pred_size + target_size - intersection)


OVERLAPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"dice": dice, "iou": iou}


def mean_over_classes(scores: Tensor) -> Tensor:
    """Mean over the last dimension without the NaN of absent classes; 1 where no class is in either mask."""
    return scores.nanmean(dim=-1).nan_to_num(nan=1.0)


class MaskMetric(PerImageMetric):
    """Base of metrics of class masks: takes the fields of `Classes`, leaves out images without a value, as void ones."""

    leaves_out_undefined = True

    def __init__(self, **classes: Any) -> None:
        super().__init__()
        self.classes = Classes(**classes)


class Overlap(MaskMetric):
    """Dice or IoU (`kind`) of each image, mean over the classes in its truth or prediction; 1 if there is none in either.

    An image that is void everywhere has no value.
    """

    def __init__(self, kind: str = "dice", **classes: Any) -> None:
        super().__init__(**classes)
        self.overlap = OVERLAPS[kind]

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds a batch of masks, int64 (B, H, W)."""
        sizes, is_known = self.classes.sizes(pred, target)
        self.keep(mean_over_classes(self.overlap(*sizes)).where(is_known, torch.nan))


class PooledOverlap(Metric):
    """Dice or IoU of each class over the pixels of all images, mean over the classes in any; 1 if there is none.

    The IoU is the mIoU of semantic segmentation. Large objects weigh more than small ones.
    """

    sizes: Tensor
    num_images: Tensor

    def __init__(self, kind: str = "dice", **classes: Any) -> None:
        super().__init__()
        self.overlap, self.classes = OVERLAPS[kind], Classes(**classes)
        num_counted = self.classes.num_classes - (not self.classes.include_background)
        self.add_state("sizes", torch.zeros(3, num_counted, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds a batch of masks, int64 (B, H, W)."""
        sizes, is_known = self.classes.sizes(pred, target)
        self.sizes += sizes.sum(1)
        self.num_images += is_known.sum()

    def compute(self) -> Summary:
        """Mean over classes, and the number of images that are not void everywhere; NaN without any."""
        count = int(self.num_images)
        value = mean_over_classes(self.overlap(*self.sizes)).item() if count else float("nan")
        return Summary(value, None, count)
