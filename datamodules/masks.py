"""Images with masks of one or several raters: a folder of them, read step by step as photos are."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from datamodules.decode import check_image, decode_image
from datamodules.folder_datamodule import FolderDataModule
from datamodules.keyed_dataset import Draw, Item, KeyedDataset
from datamodules.mask_files import MaskClasses, MaskedImage, mask_classes, read_masks, split_pairs
from datamodules.options import check_share, from_options
from datamodules.view import Transform

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskTransform(Transform):
    """How an image and its masks become a sample; the masks share the image's view, and no colour change."""

    scale: Sequence[float] = (0.8, 1.0)  # range of the sides of random squares, shares of the short side
    brightness: float = 0.0  # largest amount that is added to a training image or taken from it
    contrast: float = 0.0  # a training image is multiplied by 1 - contrast to 1 + contrast

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(brightness=self.brightness, contrast=self.contrast)
        if len(self.scale) != 2 or not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(
                f"datamodule.scale is {list(self.scale)}; expected the smallest and the largest share, above 0 and at most 1"
            )
        if self.size_px is None and self.crop == "random":
            raise ValueError(
                "datamodule.size_px=null keeps images whole, so datamodule.crop=random has nothing to do; set "
                "datamodule.size_px, or datamodule.crop=center"
            )

    @property
    def deterministic(self) -> bool:
        return super().deterministic and not self.brightness and not self.contrast

    def random_side(self, short_px: int, share: float) -> int:
        low, high = self.scale
        return max(1, round(short_px * (low + (high - low) * share)))

    def recolored(self, image: Tensor, uniform: np.ndarray) -> Tensor:
        """The image (3, H, W) in [0, 1] with contrast and brightness changed by two numbers in [0, 1)."""
        if not self.brightness and not self.contrast:
            return image
        from kornia.enhance import adjust_brightness, adjust_contrast

        contrast, brightness = (2 * uniform - 1) * (self.contrast, self.brightness)
        return adjust_brightness(adjust_contrast(image, 1.0 + contrast), brightness)


class MaskDataset(KeyedDataset):
    """Images with masks; a training sample has the mask of one rater, drawn anew in each epoch, others those of all.

    Args:
        pairs, names: The files, and the unique name of each image in batches.
        transform: Size, crop, flip and colours.
        classes: What the masks' values mean.
        seed: Of the augmentation and of the choice of a rater.
        stored: Results of `pair` kept in memory, or None to decode at every access.
    """

    num_draws = 7  # flip, side, top, left, the rater, contrast, brightness
    transform: MaskTransform

    def __init__(
        self,
        pairs: Sequence[MaskedImage],
        *,
        names: Sequence[str],
        transform: MaskTransform,
        classes: MaskClasses,
        seed: int = 0,
        stored: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__(names, transform=transform, seed=seed)
        self.pairs, self.classes = list(pairs), classes
        self._stored = stored

    def files(self, index: int, epoch: int | None = None) -> list[Path]:
        return [self.pairs[index].image, *self.pairs[index].masks]

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """The image uint8 (3, H, W) and all raters' class ids (R, H, W), before the sample's view."""
        if self._stored is not None:
            return self._stored[index]
        pair, max_pixels = self.pairs[index], self.transform.max_pixels
        image = decode_image(pair.image, max_pixels)
        size = (image.shape[-2], image.shape[-1])
        return image, read_masks(pair, self.classes, size=size, max_pixels=max_pixels)

    def item(self, index: int, draw: Draw | None) -> Item:
        image, masks = self.pair(index)
        crop = None if draw is None else draw.uniform[1:4]
        view = self.transform.view((image.shape[-2], image.shape[-1]), crop, flip=self.flips(draw))
        shown = view.image(image) / 255.0
        if draw is None:
            masks = view.mask(masks).long()
            return Item(image=shown, mask=masks[0], masks=[masks])
        rater = int(draw.uniform[4] * len(masks))
        return Item(
            image=self.transform.recolored(shown, draw.uniform[5:7]),
            mask=view.mask(masks[rater : rater + 1])[0].long(),
        )


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
            names=[self.name_of(pair.image) for pair, _ in found],
            transform=transform,
            classes=classes,
            seed=self.seed,
            stored=[kept for _, (kept, _) in found if kept is not None] if self.keep else None,
        )
