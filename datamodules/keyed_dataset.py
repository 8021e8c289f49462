"""A map-style data set whose samples are a pure function of (seed, epoch, index), and batches of them."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.decode import UnreadableImage, attempts, pixels_key
from datamodules.image_files import file_states
from datamodules.loader_workers import ReadingTable
from datamodules.moments_file import MomentsFile
from datamodules.step_sampler import Key
from datamodules.view import Transform

MAX_REPLACEMENTS = 64
# Part of the fingerprint; to be raised with every change of the pixels that a file gives.
DECODING_VERSION = 1


class Item(TypedDict, total=False):
    """One sample; `collate` makes the batch of it. Images are float32 (3, H, W) in [0, 1].

    `skipped` is what is wrong with the file in whose place this sample stands, "" if it is its own; the loader counts
    it and takes it out of the batch.
    """

    index: int
    name: str
    skipped: str
    image: Tensor
    source: Tensor  # what `image` is to be made from
    caption: str
    mask: Tensor  # int64 (H, W), class ids
    masks: list[Tensor]  # one int64 (R, H, W), class ids of all raters
    image_a: Tensor
    image_b: Tensor
    name_b: str
    encodings: dict[str, Tensor]  # (2Z, h, w) each


@dataclass(frozen=True)
class Draw:
    """What a training sample is augmented by."""

    epoch: int
    uniform: np.ndarray  # numbers in [0, 1), a function of (seed, epoch, index); the first decides the flip


class KeyedDataset(Dataset[Item]):
    """Key (epoch, index) gives the augmented training sample, a plain index the fixed one.

    A sample that can't be read is replaced as a whole by the next one that can: which one is a function of the files
    alone.

    Attributes:
        encodings: Latent posteriors by name, of the image as it was flipped, as a latent cache sets them.
        reading: None, or in a loader's worker the table in which it notes what it reads.
    """

    num_draws: ClassVar[int]  # numbers that augment a sample

    def __init__(self, names: Sequence[str], *, transform: Transform, seed: int) -> None:
        self.names, self.transform, self.seed = list(names), transform, seed
        self.encodings: dict[str, MomentsFile] = {}
        self.reading: ReadingTable | None = None

    def item(self, index: int, draw: Draw | None) -> Item:
        """The sample without name and index; None draws nothing.

        Raises:
            UnreadableImage: If a file of it can't be read.
        """
        raise NotImplementedError

    def files(self, index: int, epoch: int | None = None) -> list[Path]:
        """The files that the sample is made of, the image first."""
        raise NotImplementedError

    def load(self, index: int, flip: bool = False) -> Tensor:
        """Image without augmentation except the given flip, float32 (3, H, W); never another one, as `dataset[index]`."""
        image = self.item(index, None)["image"]
        return image.flip(-1) if flip else image

    @property
    def deterministic(self) -> bool:
        """Whether the image of an index is fixed up to a flip, so that its latent can be cached."""
        return self.transform.deterministic

    def states(self) -> list[str]:
        """Of each sample what changes with its image."""
        paths = [self.files(index)[0] for index in range(len(self))]
        keys = attempts(paths, lambda path: pixels_key(path, self.transform.max_pixels))
        return [f"{state}{key}" for state, (_, key) in zip(file_states(paths), keys, strict=True)]

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """Hex digest of the names, the state of the images' files and the crop; changes if a cached latent would."""
        settings = f"{DECODING_VERSION} {self.transform.size_px} {self.transform.crop} {len(self)}"
        digest = hashlib.sha256(settings.encode())
        for name, state in zip(self.names, self.states(), strict=True):
            digest.update(f"{name!r} {state}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def flips(self, draw: Draw | None) -> bool:
        """Whether a draw mirrors the image."""
        return draw is not None and bool(draw.uniform[0] < self.transform.flip_prob)

    def __getitem__(self, key: Key | int) -> Item:
        epoch, index = key if isinstance(key, tuple) else (None, int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} samples")
        draw = None
        if epoch is not None:
            bits = np.random.Philox(np.random.SeedSequence([self.seed, epoch, index]))
            draw = Draw(epoch, np.random.Generator(bits).random(self.num_draws))
        errors: list[UnreadableImage] = []
        for number in range(index, index + min(len(self), MAX_REPLACEMENTS)):
            position = number % len(self)
            with nullcontext() if self.reading is None else self.reading.noted(epoch, position):
                try:
                    item = self.item(position, draw)
                    for name, file in self.encodings.items():
                        item.setdefault("encodings", {})[name] = file.get(position, self.flips(draw))
                except UnreadableImage as error:
                    errors.append(error)
                    continue
            item["name"], item["index"] = self.names[position], position
            item["skipped"] = f"{str(errors[0].path)!r}: {errors[0].reason}" if errors else ""
            return item
        rest = f"the {len(errors) - 1} files after it cannot be read either"
        raise UnreadableImage(errors[0].path, f"{errors[0].reason}; {rest}")


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of samples with the same keys.

    Tensors of one shape and numbers are stacked, tensors of several shapes and texts are lists, lists are joined, and
    dicts collated key by key.
    """
    return {key: _entry([item[key] for item in items]) for key in items[0]}


def _entry(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return collate(values)
    if isinstance(first, list):
        return sum(values, [])
    different = isinstance(first, Tensor) and len({value.shape for value in values}) > 1
    return values if different or isinstance(first, str) else default_collate(values)
