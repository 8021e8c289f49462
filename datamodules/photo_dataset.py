"""A map-style data set of photos whose augmentation is a pure function of (seed, epoch, index)."""

import hashlib
import logging
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.captions import PhotoCaption
from datamodules.decode import (
    UnreadableImage,
    center_crop,
    check_image,
    decode_image,
    resize,
    resize_short_side,
)
from datamodules.step_sampler import Key

log = logging.getLogger(__name__)

# Random crops take between 1 / RANDOM_CROP_MARGIN and all of the short side.
RANDOM_CROP_MARGIN = 1.25
# JPEGs are decoded at 1/2, 1/4 or 1/8 scale while that leaves this many times the pixels needed a side.
DECODE_MARGIN = 2
MAX_REPLACEMENTS = 64


class PhotoItem(TypedDict):
    """One sample; the default collate makes the batch of it."""

    image: Tensor
    caption: str
    name: str
    index: int
    moments: NotRequired[Tensor]


class MomentsCache(Protocol):
    """Stored latent posteriors of a data set, (2*Cz, h, w) each."""

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
        return center_crop(image, short_px) if self.crop == "center" else resize_short_side(image, short_px)

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

    Args:
        paths: Image files.
        names: Unique name of each, as it appears in batches.
        transform: Crop, size and probabilities.
        captions: Caption parts of each; None = empty captions.
        seed: Seed of the augmentation.
        stored: Results of `transform.stored` kept in memory, or None to decode at every access.

    Attributes:
        moments: None, or an object whose get(index, flip) gives the latent posterior of the image as it was flipped.
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
        self._stored = stored
        # Shared memory: the workers count in it too.
        self._num_replaced = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._warned: set[Path] = set()

    @property
    def deterministic(self) -> bool:
        """Whether the image of an index is fixed up to a flip, so that its latent can be cached."""
        return self.transform.crop == "center"

    @property
    def num_replaced(self) -> int:
        """Accesses at which a file that broke after the start was replaced by another, in all workers."""
        return int(self._num_replaced.item())

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """Hex digest of the names, file sizes, modification times and the crop; changes if a cached latent would."""
        digest = hashlib.sha256(f"{self.transform.size_px} {self.transform.crop} {len(self)}".encode())
        for name, path in zip(self.names, self.paths, strict=True):
            status = path.stat() if path.exists() else None
            state = (status.st_size, status.st_mtime_ns) if status else None
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
        """Image without augmentation except the given flip: float32 (3, size_px, size_px) in [0, 1]."""
        return self._image(index, draws=None, flip=flip)

    def __getitem__(self, key: Key | int) -> PhotoItem:
        if isinstance(key, tuple):
            epoch, index = key
            bits = np.random.Philox(np.random.SeedSequence([self.seed, epoch, index]))
            draws = np.random.Generator(bits).random(6)
            flip = bool(draws[0] < self.transform.flip_prob)
            image = self._image(index, draws=draws[1:4], flip=flip)
            caption = self._mixed_caption(index, draws[4:6])
        else:
            index, flip = int(key), False
            image, caption = self.load(index), self.captions[index].text()
        item = PhotoItem(image=image, caption=caption, name=self.names[index], index=index)
        if self.moments is not None:
            item["moments"] = self.moments.get(index, flip)
        return item

    def _mixed_caption(self, index: int, draws: np.ndarray) -> str:
        with_colors = bool(draws[0] >= self.transform.caption_drop_colors_prob)
        with_subject = bool(draws[1] >= self.transform.caption_drop_class_prob)
        return self.captions[index].text(with_subject=with_subject, with_colors=with_colors)

    def _image(self, index: int, *, draws: np.ndarray | None, flip: bool) -> Tensor:
        image = self.transform.cropped(self._stored_image(index), draws)
        if flip:
            image = image.flip(-1)
        return image.to(torch.float32) / 255.0

    def _stored_image(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} photos")
        if self._stored is not None:
            return self._stored[index]
        for attempt in range(min(len(self), MAX_REPLACEMENTS)):
            try:
                image = self.transform.stored(self.paths[(index + attempt) % len(self)])
            except UnreadableImage as error:
                if error.path not in self._warned:
                    self._warned.add(error.path)
                    log.warning("%s; the next photo takes its place", error)
                continue
            if attempt:
                self._num_replaced += 1
            return image
        raise UnreadableImage(
            self.paths[index], f"and the {MAX_REPLACEMENTS} files after it could not be read either"
        )


def readable(
    paths: Sequence[Path], *, transform: PhotoTransform, keep: bool, decode: bool = False
) -> list[tuple[Path, Tensor | None]]:
    """The readable ones of `paths` in their order, each with what is stored of it if `keep`, else None.

    Files are decoded in full if `keep` or `decode`, else their header and end are checked. Skipped files are logged in one warning with
    their reasons.
    """

    def attempt(path: Path) -> Tensor | None | UnreadableImage:
        try:
            if keep or decode:
                image = transform.stored(path)
                return image if keep else None
            check_image(path, max_pixels=transform.max_pixels)
            return None
        except UnreadableImage as error:
            return error

    # Pillow and torch release the interpreter lock, so threads decode in parallel.
    # warnings.catch_warnings is not safe within threads; around them it silences Pillow's remarks on odd metadata.
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")
        results = list(zip(paths, pool.map(attempt, paths), strict=True))
    broken = [result for _, result in results if isinstance(result, UnreadableImage)]
    if broken:
        lines = "\n".join(f"  {str(error.path)!r}: {error.reason}" for error in broken)
        log.warning("skipped %d of %d images that cannot be read:\n%s", len(broken), len(results), lines)
    return [(path, result) for path, result in results if not isinstance(result, UnreadableImage)]
