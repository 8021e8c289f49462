"""Finds the masks of images, and reads what their values mean."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.decode import UnusableMask, decode_mask
from datamodules.image_files import by_stem, hashed_split, split_source


@dataclass(frozen=True)
class MaskedImage:
    """The file of an image and those of its masks, one of each rater."""

    image: Path
    masks: tuple[Path, ...]


@dataclass(frozen=True)
class MaskClasses:
    """What the values of mask files mean."""

    names: tuple[str, ...]  # of the class ids
    ignore_index: int | None = None  # value of void pixels, kept as it is; None = there are none
    values: tuple[int, ...] | None = None  # the files' value of each class id; None = the ids themselves

    def ids(self, values: Tensor, path: Path) -> Tensor:
        """Class ids of the values (H, W), uint8 or int32, of the file `path`; UnusableMask if one stands for no class."""
        # numpy compares numbers of any size; torch would wrap 700 to 188 before it compares it with a uint8.
        array = values.numpy()
        allowed = list(range(len(self.names)) if self.values is None else self.values)
        unknown = ~np.isin(array, allowed if self.ignore_index is None else [*allowed, self.ignore_index])
        if unknown.any():
            raise UnusableMask(path, self._advice(int(array[unknown][0]), set(np.unique(array).tolist())))
        if self.values is None:
            return values
        ids = array.astype(np.int32 if len(self.names) > 256 else array.dtype)
        for number, value in enumerate(self.values):
            ids[array == value] = number
        return torch.from_numpy(ids)

    def _advice(self, value: int, found: set[int]) -> str:
        ids = f"class ids 0 to {len(self.names) - 1}"
        text = f"holds the value {value}; expected {ids if self.values is None else f'one of {list(self.values)}'}"
        text += "" if self.ignore_index is None else f", or {self.ignore_index} where it is void"
        if self.values is None and found <= {0, 255}:
            return f"{text}; set datamodule.mask_values=[0,255] to read 255 as class 1"
        return (
            f"{text}; set datamodule.mask_values to the files' values of the classes in order, "
            f"datamodule.ignore_index={value} if it marks void pixels, or raise datamodule.num_classes"
        )


def mask_classes(
    root: Path, *, num_classes: int | None, ignore_index: int | None, mask_values: Sequence[int] | None
) -> MaskClasses:
    """The classes by the options and, if there is one, `root`/classes.json, which names them and void.

    Raises:
        ValueError: If nothing says how many there are, or two things say different.
    """
    names, void = _read_classes(root / "classes.json")
    ignore_index = void if ignore_index is None else ignore_index
    values = None if mask_values is None else tuple(mask_values)
    counts = {
        "datamodule.num_classes": num_classes,
        "datamodule.mask_values": None if values is None else len(values),
        "classes.json": None if names is None else len(names),
    }
    known = {source: count for source, count in counts.items() if count is not None}
    if not known:
        raise ValueError(
            "the number of classes is not known; set datamodule.num_classes (with the background) or write "
            f"{str(root / 'classes.json')!r}"
        )
    if len(set(known.values())) > 1:
        differ = ", ".join(f"{count} by {source}" for source, count in known.items())
        raise ValueError(f"the numbers of classes differ: {differ}")
    taken = {number: value for number, value in enumerate(values or ()) if number != value}
    if ignore_index in taken:
        raise ValueError(
            f"the void value {ignore_index} would become the id of a class, which datamodule.mask_values gives to the value "
            f"{taken[ignore_index]}; leave datamodule.mask_values out and count void as a class of datamodule.num_classes"
        )
    names = names or tuple(str(number) for number in range(next(iter(known.values()))))
    return MaskClasses(names, ignore_index, values)


def _read_classes(file: Path) -> tuple[tuple[str, ...] | None, int | None]:
    """The names of the classes and the value of void; None for what the file, if there is one, does not say."""
    if not file.is_file():
        return None, None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        named = {int(entry["id"]): str(entry["name"]) for entry in content["classes"]}
        void = int(content["void"]["id"]) if "void" in content else None
        return tuple(named[number] for number in range(len(named))), void
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{str(file)!r} cannot be used ({type(error).__name__}: {error}); expected {{"classes": [{{"id": 0, "name": '
            '"sky"}, ...]} with the ids 0, 1, 2 ... and perhaps "void": {"id": 255}'
        ) from error


def split_pairs(root: Path, split: str) -> list[MaskedImage]:
    """The images of a split with their masks, in natural order; none if there is no such split."""
    folder, hashed = split_source(root, split)
    if folder is None:
        return []
    pairs = paired(folder)
    if not hashed:
        return pairs
    chosen = set(hashed_split([pair.image for pair in pairs], root=root, split=split))
    return [pair for pair in pairs if pair.image in chosen]


def paired(folder: Path) -> list[MaskedImage]:
    """Each image below `folder`/images with its masks: `masks`/STEM.* or, of several raters, STEM_1.*, STEM_2.* ...

    Raises:
        OSError, ValueError: If a folder is missing or empty, or an image or mask has no counterpart.
    """
    for name in ("images", "masks"):
        if folder.exists() and not (folder / name).is_dir():
            raise FileNotFoundError(
                f"{str(folder)!r} has no folder {name}/; datamodule=masks takes images/ and masks/ in datamodule.root, or in "
                "its folders train/, val/ and test/"
            )
    images, masks = by_stem(folder / "images"), by_stem(folder / "masks")
    found: dict[str, list[Path]] = {stem: [] for stem in images}
    orphans = []
    for stem, path in masks.items():
        owner = stem if stem in images else re.sub(r"_[0-9]+$", "", stem)
        if owner in images:
            found[owner].append(path)
        else:
            orphans.append(path)
    if orphans:
        raise ValueError(
            f"{len(orphans)} of {len(masks)} masks of {str(folder)!r} belong to no image (the first is "
            f"{str(orphans[0])!r}); name a mask like its image, with _1, _2 ... for several raters"
        )
    bare = [images[stem] for stem, own in found.items() if not own]
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(images)} images of {str(folder)!r} have no mask (the first is {str(bare[0])!r}); add "
            "their masks, or take these images out of the folder"
        )
    return [MaskedImage(path, tuple(found[stem])) for stem, path in images.items()]


def read_masks(pair: MaskedImage, classes: MaskClasses, *, size: tuple[int, int], max_pixels: int) -> Tensor:
    """Class ids (R, H, W) of an image's raters, uint8 or int32; UnusableMask if one has not the height and width `size`."""
    masks = []
    for path in pair.masks:
        values = decode_mask(path, max_pixels)
        if values.shape != size:
            raise UnusableMask(
                path,
                f"has {values.shape[1]}x{values.shape[0]} pixels, but its image {str(pair.image)!r} {size[1]}x{size[0]}; "
                "make a mask of the image's size",
            )
        masks.append(classes.ids(values, path))
    return torch.stack([mask.to(torch.promote_types(masks[0].dtype, masks[-1].dtype)) for mask in masks])
