"""Photos with captions by position."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.captions import PhotoCaption
from datamodules.decode import decode_image
from datamodules.keyed_dataset import Draw, Item, KeyedDataset
from datamodules.options import check_share
from datamodules.view import Transform, resize_short_side

# Random crops take between 1 / RANDOM_CROP_MARGIN and all of the short side.
RANDOM_CROP_MARGIN = 1.25
# JPEGs are decoded at 1/2, 1/4 or 1/8 scale while that leaves this many times the pixels needed a side.
DECODE_MARGIN = 2
# A longer side is cut to this many short ones before random crops: 663 bytes that held 1 x 200000 pixels took 9.7 GB.
MAX_ASPECT = 16


@dataclass(frozen=True)
class PhotoTransform(Transform):
    """How a file becomes an image and its caption parts a caption; random crops are of 80 to 100 % of the short side."""

    size_px: int
    caption_drop_colors_prob: float = 0.0  # that a training caption leaves out its colour names
    caption_drop_class_prob: float = 0.0  # that a training caption leaves out all but its colour names

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(
            caption_drop_colors_prob=self.caption_drop_colors_prob,
            caption_drop_class_prob=self.caption_drop_class_prob,
        )

    def stored(self, path: Path) -> Tensor:
        """What image_cache="memory" keeps of a file, uint8: the final square, or for random crops the resized photo."""
        short_px = self.size_px if self.crop != "random" else round(self.size_px * RANDOM_CROP_MARGIN)
        image = decode_image(path, self.max_pixels, min_side_px=DECODE_MARGIN * short_px)
        height, width = image.shape[-2:]
        if self.crop != "random":
            return self.view((height, width)).image(image)
        longest = MAX_ASPECT * min(height, width)
        top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
        return resize_short_side(image[:, top : top + longest, left : left + longest], short_px)

    def random_side(self, short_px: int, share: float) -> int:
        return self.size_px + int(share * (short_px - self.size_px + 1))


class PhotoDataset(KeyedDataset):
    """Image files with captions, which are empty until `captions` is set.

    Args:
        paths, names: Image files, and the unique name of each in batches.
        transform: Crop, size and probabilities.
        seed: Of the augmentation.
        stored: Results of `transform.stored` kept in memory, or None to decode at every access.
    """

    num_draws = 7  # flip, side, top, left, the caption's colours, its class, which of several captions
    transform: PhotoTransform

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        names: Sequence[str],
        transform: PhotoTransform,
        seed: int = 0,
        stored: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        super().__init__(names, transform=transform, seed=seed)
        self.paths = list(paths)
        self.captions = [PhotoCaption()] * len(self.paths)
        if isinstance(stored, list) and len({image.shape for image in stored}) == 1:
            # Thousands of small tensors cost more memory and slow down forked workers.
            stored = torch.stack(stored)
        self._stored = stored

    def files(self, index: int, epoch: int | None = None) -> list[Path]:
        return [self.paths[index]]

    def subset(self, indices: Sequence[int]) -> "PhotoDataset":
        """The data set of some photos, numbered anew and without captions."""
        return PhotoDataset(
            [self.paths[index] for index in indices],
            names=[self.names[index] for index in indices],
            transform=self.transform,
            seed=self.seed,
            stored=None if self._stored is None else [self._stored[index] for index in indices],
        )

    def photo(self, index: int, uniform: np.ndarray | None, *, flip: bool) -> Tensor:
        """Image float32 (3, size_px, size_px) in [0, 1]; `uniform` are the three numbers of a random crop."""
        stored = self.transform.stored(self.paths[index]) if self._stored is None else self._stored[index]
        height, width = stored.shape[-2:]
        return self.transform.view((height, width), uniform, flip=flip).image(stored).float() / 255.0

    def item(self, index: int, draw: Draw | None) -> Item:
        parts: dict[str, Any] = {}
        crop = None
        if draw is not None:
            crop, (colors, subject) = draw.uniform[1:4], draw.uniform[4:6]
            parts["with_colors"] = bool(colors >= self.transform.caption_drop_colors_prob)
            parts["with_subject"] = bool(subject >= self.transform.caption_drop_class_prob)
            parts["share"] = float(draw.uniform[6])
        return Item(
            image=self.photo(index, crop, flip=self.flips(draw)), caption=self.captions[index].text(**parts)
        )
