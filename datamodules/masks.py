"""Folders of images with masks, read step by step as photos are."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from datamodules.decode import check_image, decode_image
from datamodules.folder_datamodule import FolderDataModule
from datamodules.mask_dataset import MaskDataset, MaskTransform
from datamodules.mask_files import MaskedImage, mask_classes, read_masks, split_pairs
from datamodules.options import from_options

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False, repr=False)
class MasksDataModule(FolderDataModule):
    """Images with class ids for each pixel; see docs/data.md for the layout.

    Batches hold `image`, `mask`, `name`, `index`; in evaluation also `masks`, those of all raters, of which `mask` is the
    first. In training it is of a rater drawn by (seed, epoch, index). With size_px=None images of several sizes stay lists.
    """

    size_px: int | None = 128  # side of the square images; None = whole images at their own size
    num_classes: int | None = None  # class ids, with the background; None = by mask_values or classes.json
    ignore_index: int | None = None  # value of void pixels; None = by classes.json, or there are none
    mask_values: Sequence[int] | None = None  # the files' value of each class id; None = the ids themselves
    crop: Literal["center", "random", "resize"] = "center"  # in training
    scale: Sequence[float] = (0.8, 1.0)  # range of the sides of random squares, shares of the short side
    brightness: float = 0.0  # largest amount added to a training image or taken from it
    contrast: float = 0.0  # training images are multiplied by 1 - contrast to 1 + contrast

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(
                f"datamodule.num_classes is {self.num_classes}; expected at least 2, with the background"
            )
        values = self.mask_values
        if values is not None and len(set(values)) < max(2, len(values)):
            raise ValueError(
                f"datamodule.mask_values is {list(values)}; expected different values of two or more classes"
            )
        self.train_transform = from_options(MaskTransform, self)
        self.eval_transform = replace(self.train_transform, crop=self.eval_crop)

    def build_dataset(self, split: str) -> MaskDataset:
        """The readable images of a split with their masks; OSError or ValueError if something is missing or does not fit."""
        transform = self.train_transform if split == "train" else self.eval_transform
        classes = mask_classes(
            self.folder,
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            mask_values=self.mask_values,
        )

        def read(pair: MaskedImage) -> tuple[tuple[Tensor, Tensor] | None, bool]:
            """What is to be kept of a sample in memory, and whether its masks are empty."""
            size = check_image(pair.image, max_pixels=self.max_pixels)
            image = decode_image(pair.image, self.max_pixels) if self.keep or split != "train" else None
            masks = read_masks(pair, classes, size=size, max_pixels=self.max_pixels)
            is_empty = bool(np.isin(masks.numpy(), [0, classes.ignore_index or 0]).all())
            if not self.keep or image is None:
                return None, is_empty
            if transform.crop == "random":
                return (image, masks), is_empty
            view = transform.view(size)
            return (view.image(image).clone(), view.mask(masks).clone()), is_empty

        found = self.readable(split_pairs(self.folder, split), read, what=f"{split} split")
        num_empty = sum(is_empty for _, (_, is_empty) in found)
        if num_empty:
            log.warning(
                "%d of %d images of the %s split are class 0 everywhere", num_empty, len(found), split
            )
        return MaskDataset(
            [pair for pair, _ in found],
            names=[self.name(pair.image) for pair, _ in found],
            transform=transform,
            classes=classes,
            seed=self.seed,
            stored=[kept for _, (kept, _) in found if kept is not None] if self.keep else None,
        )
