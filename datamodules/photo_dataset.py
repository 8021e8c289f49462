"""A map-style data set of photos whose augmentation is a pure function of (seed, epoch, index)."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.captions import PhotoCaption
from datamodules.decode import (
    CANNOT_READ,
    UnreadableImage,
    center_crop,
    decode_image,
    resize,
    resize_short_side,
)
from datamodules.fingerprint import file_states
from datamodules.reading_table import ReadingTable
from datamodules.step_sampler import Key

# Random crops take between 1 / RANDOM_CROP_MARGIN and all of the short side.
RANDOM_CROP_MARGIN = 1.25
# JPEGs are decoded at 1/2, 1/4 or 1/8 scale while that leaves this many times the pixels needed a side.
DECODE_MARGIN = 2
# A longer side is cut to this many short ones before random crops: 663 bytes that held 1 x 200000 pixels took 9.7 GB.
MAX_ASPECT = 16
MAX_REPLACEMENTS = 64
# Part of the fingerprint; to be raised with every change of the pixels that a file gives.
DECODING_VERSION = 1


class PhotoItem(TypedDict):
    """One sample; the default collate makes the batch of it.

    `skipped` is what is wrong with the file in whose place this photo stands, "" if it is its own; the loader counts
    it and takes it out of the batch.
    """

    image: Tensor
    caption: str
    name: str
    index: int
    skipped: str
    moments: NotRequired[Tensor]
    source_moments: NotRequired[Tensor]


class MomentsCache(Protocol):
    """Stored latent posteriors of a data set, (2*Cz, h, w) each; one that can't be used raises UnreadableImage."""

    def get(self, index: int, flip: bool) -> Tensor: ...


@dataclass(frozen=True)
class PhotoTransform:
    """How a file becomes an image.

    Args:
        size_px: Side of the square image.
        crop: "center" (largest central square), "resize" (squeezed to a square) or "random" (a square of 80 to 100 %
            of the short side, in training).
        flip_prob: Probability of a left-right flip in training.
        max_pixels: Files with more pixels are refused before they are decoded.
        caption_drop_colors_prob: Probability that a training caption leaves out its colour names.
        caption_drop_class_prob: Probability that a training caption leaves out all but its colour names.
    """

    size_px: int
    crop: str = "center"
    flip_prob: float = 0.5
    max_pixels: int = 64_000_000
    caption_drop_colors_prob: float = 0.0
    caption_drop_class_prob: float = 0.0

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise ValueError(f"datamodule.size_px is {self.size_px}; expected at least 1")
        for key in ("flip_prob", "caption_drop_colors_prob", "caption_drop_class_prob"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise ValueError(
                    f"datamodule.{key} is {getattr(self, key)}; expected a probability in [0, 1]"
                )

    def stored(self, path: Path) -> Tensor:
        """What image_cache="memory" keeps of a file, uint8: the final square, or for random crops the resized photo.

        Raises:
            UnreadableImage: See `decode_image`.
        """
        short_px = self.size_px if self.crop != "random" else round(self.size_px * RANDOM_CROP_MARGIN)
        image = decode_image(path, self.max_pixels, min_side_px=DECODE_MARGIN * short_px)
        if self.crop == "resize":
            return resize(image, self.size_px, self.size_px)
        if self.crop == "center":
            return center_crop(image, short_px)
        height, width = image.shape[-2:]
        longest = MAX_ASPECT * min(height, width)
        top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
        return resize_short_side(image[:, top : top + longest, left : left + longest], short_px)

    def cropped(self, stored: Tensor, draws: np.ndarray | None) -> Tensor:
        """The square uint8 image (3, size_px, size_px); `draws` are three numbers in [0, 1), None = central."""
        if self.crop != "random":
            return stored
        if draws is None:
            return center_crop(stored, self.size_px)
        height, width = stored.shape[-2:]
        side = self.size_px + int(draws[0] * (min(height, width) - self.size_px + 1))
        top, left = int(draws[1] * (height - side + 1)), int(draws[2] * (width - side + 1))
        return resize(stored[:, top : top + side, left : left + side], self.size_px, self.size_px)


class PhotoDataset(Dataset[PhotoItem]):
    """Photos by position: key (epoch, index) gives the augmented training sample, a plain index the fixed one.

    A photo that can't be read is replaced as a whole, with caption and latent, by the next one that can: which one is
    a function of the files alone.

    Args:
        paths: Image files.
        names: Unique name of each, as it appears in batches.
        transform: Crop, size and probabilities.
        captions: Caption parts of each; None = empty captions.
        seed: Seed of the augmentation.
        stored: Results of `transform.stored` kept in memory, or None to decode at every access.

    Attributes:
        moments: None, or an object whose get(index, flip) gives the latent posterior of the image as it was flipped.
        source_moments: The same of what a method starts from, such as the grey photo.
        reading: None, or in a loader's worker the table in which it notes what it reads.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        names: Sequence[str],
        transform: PhotoTransform,
        captions: Sequence[PhotoCaption] | None = None,
        seed: int = 0,
        stored: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        self.paths, self.names = list(paths), list(names)
        self.captions = [PhotoCaption()] * len(self.paths) if captions is None else list(captions)
        self.transform, self.seed = transform, seed
        self.moments: MomentsCache | None = None
        self.source_moments: MomentsCache | None = None
        self.reading: ReadingTable | None = None
        self._stored = stored

    @property
    def deterministic(self) -> bool:
        """Whether the image of an index is fixed up to a flip, so that its latent can be cached."""
        return self.transform.crop == "center"

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """Hex digest of the names, the state of the files and the crop; changes if a cached latent would."""
        transform = self.transform
        digest = hashlib.sha256(
            f"{DECODING_VERSION} {transform.size_px} {transform.crop} {len(self)}".encode()
        )
        for name, state in zip(self.names, file_states(self.paths), strict=True):
            digest.update(f"{name!r} {state}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> "PhotoDataset":
        """The data set of some photos, numbered anew."""
        stored: list[Tensor] | Tensor | None
        if self._stored is None or isinstance(self._stored, Tensor):
            stored = None if self._stored is None else self._stored[list(indices)]
        else:
            stored = [self._stored[index] for index in indices]
        return PhotoDataset(
            [self.paths[index] for index in indices],
            names=[self.names[index] for index in indices],
            transform=self.transform,
            captions=[self.captions[index] for index in indices],
            seed=self.seed,
            stored=stored,
        )

    def load(self, index: int, flip: bool = False) -> Tensor:
        """Image without augmentation except the given flip: float32 (3, size_px, size_px) in [0, 1].

        Raises:
            UnreadableImage: If the file can't be read; only `dataset[index]` replaces it.
        """
        self._check_index(index)
        return self._image(index, draws=None, flip=flip)

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} photos")

    def __getitem__(self, key: Key | int) -> PhotoItem:
        epoch, index = key if isinstance(key, tuple) else (None, int(key))
        self._check_index(index)
        draws = None
        if epoch is not None:
            bits = np.random.Philox(np.random.SeedSequence([self.seed, epoch, index]))
            draws = np.random.Generator(bits).random(6)
        first: UnreadableImage | None = None
        num_tries = min(len(self), MAX_REPLACEMENTS)
        for position in (n % len(self) for n in range(index, index + num_tries)):
            with nullcontext() if self.reading is None else self.reading.noted(epoch, position):
                try:
                    return self._item(position, draws, skipped=str(first or "").removeprefix(CANNOT_READ))
                except UnreadableImage as error:
                    first = first or error
        assert first is not None
        raise UnreadableImage(
            first.path, f"{first.reason}; the {num_tries - 1} files after it cannot be read either"
        )

    def _item(self, index: int, draws: np.ndarray | None, *, skipped: str) -> PhotoItem:
        flip, caption = False, ""
        if draws is None:
            caption = self.captions[index].text()
        else:
            flip = bool(draws[0] < self.transform.flip_prob)
            caption = self._mixed_caption(index, draws[4:6])
        image = self._image(index, draws=None if draws is None else draws[1:4], flip=flip)
        item = PhotoItem(image=image, caption=caption, name=self.names[index], index=index, skipped=skipped)
        if self.moments is not None:
            item["moments"] = self.moments.get(index, flip)
        if self.source_moments is not None:
            item["source_moments"] = self.source_moments.get(index, flip)
        return item

    def _mixed_caption(self, index: int, draws: np.ndarray) -> str:
        with_colors = bool(draws[0] >= self.transform.caption_drop_colors_prob)
        with_subject = bool(draws[1] >= self.transform.caption_drop_class_prob)
        return self.captions[index].text(with_subject=with_subject, with_colors=with_colors)

    def _image(self, index: int, *, draws: np.ndarray | None, flip: bool) -> Tensor:
        stored = self.transform.stored(self.paths[index]) if self._stored is None else self._stored[index]
        image = self.transform.cropped(stored, draws)
        if flip:
            image = image.flip(-1)
        return image.to(torch.float32) / 255.0
