"""Coloured blobs with exact masks, drawn by numpy: a segmentation data set that is always there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.image_files import SPLITS
from datamodules.mask_files import MaskClasses
from datamodules.masks import MaskDataset, MaskTransform
from datamodules.options import check_at_least, from_options
from datamodules.step_datamodule import StepDataModule

# Part of the fingerprint; to be raised with every change of what is drawn.
DRAWING_VERSION = 1
MAX_BLOBS = 5
# Keeps the stream apart from that of the augmentation.
BLOBS = 0xB10B
# Radii of blobs as shares of the side, and how far raters differ in them.
MIN_RADIUS, MAX_RADIUS, RATER_SHARE = 0.06, 0.22, 0.15


def draw_blobs(*key: int, size_px: int, num_classes: int, num_raters: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture `key` of blobs on a shaded ground, and the class ids of its pixels by each rater.

    A blob is a disc whose radius varies with the angle by three waves. Each class has a colour of its own, no blob the
    exact one; a later blob covers earlier ones. Rater 0 marks the pixels whose centre lies inside, another one takes
    each blob larger or smaller.

    Returns:
        uint8 (size_px, size_px, 3) and uint8 (num_raters, size_px, size_px).
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, BLOBS])))
    grid = (np.arange(size_px) + 0.5) / size_px
    x, y = grid[None, :], grid[:, None]
    slope = generator.uniform(-0.25, 0.25, (2, 3))
    image = generator.uniform(0.2, 0.5, 3) + x[..., None] * slope[0] + y[..., None] * slope[1]
    masks = np.zeros((num_raters, size_px, size_px), dtype=np.uint8)
    hues = np.arange(num_classes - 1)[:, None] / (num_classes - 1) + np.array([0.0, 1 / 3, 2 / 3])
    colors = 0.6 + 0.4 * np.cos(2 * np.pi * hues)
    for _ in range(generator.integers(1, MAX_BLOBS + 1)):
        kind = int(generator.integers(1, num_classes))
        center_x, center_y = generator.uniform(0.1, 0.9, 2)
        waves = generator.uniform(-0.12, 0.12, 3)
        angle = np.arctan2(y - center_y, x - center_x) + generator.uniform(0, 2 * np.pi)
        shape = 1 + sum(wave * np.cos((n + 2) * angle) for n, wave in enumerate(waves))
        radius = generator.uniform(MIN_RADIUS, MAX_RADIUS) * shape
        distance = np.hypot(x - center_x, y - center_y)
        factors = 1 + generator.uniform(-RATER_SHARE, RATER_SHARE, num_raters)
        factors[0] = 1.0
        for mask, factor in zip(masks, factors, strict=True):
            mask[distance < radius * factor] = kind
        image[distance < radius] = colors[kind - 1] + generator.uniform(-0.1, 0.1, 3)
    image += generator.normal(0.0, 0.03, image.shape)
    return np.rint(image.clip(0.0, 1.0) * 255.0).astype(np.uint8), masks


class BlobDataset(MaskDataset):
    """Blobs by position, drawn at every access; `key` names the data set."""

    def __init__(
        self,
        num_images: int,
        *,
        key: Sequence[int],
        num_raters: int,
        transform: MaskTransform,
        classes: MaskClasses,
        seed: int = 0,
    ) -> None:
        names = [f"blobs_{number}" for number in range(num_images)]
        super().__init__([], names=names, transform=transform, classes=classes, seed=seed)
        self.key, self.num_raters = tuple(key), num_raters

    def files(self, index: int, epoch: int | None = None) -> list[Path]:
        return [Path(self.names[index])]

    def states(self) -> list[str]:
        return [f"{DRAWING_VERSION} {self.key} {len(self.classes.names)}"] * len(self)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        assert self.transform.size_px is not None
        image, masks = draw_blobs(
            *self.key,
            index,
            size_px=self.transform.size_px,
            num_classes=len(self.classes.names),
            num_raters=self.num_raters,
        )
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(masks)


@dataclass(kw_only=True, eq=False, repr=False)
class BuiltinBlobsDataModule(StepDataModule):
    """Blobs with exact masks; no file is needed. Batches are those of `MasksDataModule`."""

    size_px: int = 64  # side of the square images
    data_seed: int = 0  # of the images, so that trainings of different seeds see the same ones
    num_images: int = 512  # in training; val and test have an eighth of it each
    num_classes: int = 2  # class ids, with the background
    num_raters: int = 1  # masks of each image: rater 0 is exact, others take each blob larger or smaller
    flip_prob: float = 0.5  # of a left-right flip in training
    brightness: float = 0.0  # largest amount added to a training image or taken from it
    contrast: float = 0.0  # training images are multiplied by 1 - contrast to 1 + contrast

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, data_seed=self.data_seed)
        check_at_least(1, num_images=self.num_images, num_raters=self.num_raters)
        if not 2 <= self.num_classes <= 256:
            raise ValueError(
                f"datamodule.num_classes is {self.num_classes}; expected 2 to 256, with the background"
            )
        self.transform = from_options(MaskTransform, self)

    def build_dataset(self, split: str) -> BlobDataset:
        """The blobs of a split; no two splits share an image."""
        return BlobDataset(
            self.num_images if split == "train" else -(-self.num_images // 8),
            key=(self.data_seed, SPLITS.index(split)),
            num_raters=self.num_raters,
            transform=self.transform,
            classes=MaskClasses(("background", *(f"blob {n}" for n in range(1, self.num_classes)))),
            seed=self.seed,
        )
