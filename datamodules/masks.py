"""Images with masks of one or several raters: a folder of them, read step by step as photos are."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.decode import check_image, decode_image
from datamodules.folder_datamodule import FolderDataModule
from datamodules.keyed_dataset import Draw, Item, KeyedDataset
from datamodules.mask_files import MaskClasses, MaskedImage, mask_classes, read_masks, split_pairs
from datamodules.options import check_at_least, check_share, from_options
from datamodules.view import JointTransform
from diffusion.seeding import keyed_integers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskTransform(JointTransform):
    """How an image and its masks become a sample; the masks share the image's view, and no colour change."""

    rotation: float = 0.0  # largest angle in degrees of a turn in training
    brightness: float = 0.0  # largest amount that is added to a training image or taken from it
    contrast: float = 0.0  # a training image is multiplied by 1 - contrast to 1 + contrast
    gamma: float = 0.0  # a training image is raised to the power of 1 / (1 + gamma) to 1 + gamma
    saturation: float = 0.0  # its saturation is multiplied by 1 - saturation to 1 + saturation
    hue: float = 0.0  # its hue is turned by at most this share of the half circle

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(
            brightness=self.brightness, contrast=self.contrast, saturation=self.saturation, hue=self.hue
        )
        check_at_least(0, rotation=self.rotation, gamma=self.gamma)

    @property
    def deterministic(self) -> bool:
        changes = (self.rotation, self.brightness, self.contrast, self.gamma, self.saturation, self.hue)
        return super().deterministic and not any(changes)

    def moved(self, image: Tensor, mask: Tensor, uniform: np.ndarray) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) and its mask (H, W) mirrored and turned alike by two numbers in [0, 1).

        What comes in from outside is mirrored; a mask takes the nearest id, so never a new one.
        """
        image, mask = (self.turned(part, uniform[0]) for part in (image, mask))
        if self.rotation:
            from kornia.geometry.transform import rotate

            angle = torch.tensor([(2 * uniform[1] - 1) * self.rotation], dtype=torch.float32)
            image = rotate(image[None], angle, padding_mode="reflection")[0]
            mask = rotate(mask[None, None].float(), angle, mode="nearest", padding_mode="reflection")[
                0, 0
            ].to(mask.dtype)
        return image, mask

    def recolored(self, image: Tensor, uniform: np.ndarray) -> Tensor:
        """The image (3, H, W) in [0, 1] with its colours changed by five numbers in [0, 1)."""
        from kornia import enhance

        contrast, brightness, gamma, saturation, hue = 2 * uniform - 1
        if self.contrast or self.brightness:
            image = enhance.adjust_contrast(image, 1.0 + contrast * self.contrast)
            image = enhance.adjust_brightness(image, brightness * self.brightness)
        if self.gamma:
            image = enhance.adjust_gamma(image, (1.0 + self.gamma) ** gamma)
        if self.saturation:
            image = enhance.adjust_saturation(image, 1.0 + saturation * self.saturation)
        if self.hue:
            image = enhance.adjust_hue(image, hue * self.hue * math.pi)
        return image


class MaskDataset(KeyedDataset):
    """Images with masks; a training sample has the mask of one rater, drawn anew in each epoch, others those of all.

    Args:
        pairs, names: The files, and the unique name of each image in batches.
        transform: Size, crop, flip and colours.
        classes: What the masks' values mean.
        seed: Of the augmentation and of the choice of a rater.
        stored: Results of `pair` kept in memory, or None to decode at every access.
    """

    # flip, side, top, left, the rater, contrast, brightness, gamma, saturation, hue, symmetry, angle
    num_draws = 12
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
        shown, mask = self.transform.moved(
            shown, view.mask(masks[rater : rater + 1])[0].long(), draw.uniform[10:]
        )
        return Item(image=self.transform.recolored(shown, draw.uniform[5:10]), mask=mask)


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
    symmetries: bool = False  # one of the eight flips and quarter turns of a square, drawn in training
    rotation: float = 0.0  # largest angle in degrees of a turn in training
    brightness: float = 0.0  # largest amount added to a training image or taken from it
    contrast: float = 0.0  # training images are multiplied by 1 - contrast to 1 + contrast
    gamma: float = 0.0  # training images are raised to the power of 1 / (1 + gamma) to 1 + gamma
    saturation: float = 0.0  # their saturation is multiplied by 1 - saturation to 1 + saturation
    hue: float = 0.0  # their hue is turned by at most this share of the half circle
    num_train: int | None = None  # training images that keep their labels, drawn by train_seed; None = all
    train_seed: int = 0  # which these are

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(
                f"datamodule.num_classes is {self.num_classes}; expected at least 2, with the background"
            )
        check_at_least(1, num_train=self.num_train)
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

        pairs = split_pairs(self.folder, split)
        if split == "train" and self.num_train is not None:
            if self.num_train > len(pairs):
                raise ValueError(
                    f"datamodule.num_train is {self.num_train}, but there are {len(pairs)} training images"
                )
            ranks = keyed_integers(self.train_seed, sample=range(len(pairs)))
            pairs = [pairs[index] for index in sorted(np.argsort(ranks)[: self.num_train])]
        found = self.readable(pairs, read, what=f"{split} split")
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
