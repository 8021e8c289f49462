"""Finds the pictures that belong together, and reads them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from color.classes import painted
from datamodules.captions import Subject, json_lines, metadata_captions, normalised, subject_of
from datamodules.decode import check_image, decode_image, decode_mask
from datamodules.image_files import SPLITS, by_stem, hashed_split, list_images, split_folders, split_source
from datamodules.unreadable import UnusablePair

# What a column of metadata.jsonl is called beside its own name: ImageFolder's words and those of diffusers' examples.
_COLUMNS = {
    "target": ("target", "target_file_name", "image", "image_file_name", "file_name"),
    "source": ("source", "source_file_name", "conditioning_image", "conditioning_image_file_name"),
}
_RESERVED = ("image", "caption", "name", "index", "skipped", "encodings", "region", "ready")
_LAYOUTS = (
    "datamodule=pairs takes source/ and target/, or a metadata.jsonl that names both, in datamodule.root or in its folders "
    "train/, val/ and test/, or pictures side by side (datamodule.columns=[target,source])"
)


@dataclass(frozen=True)
class Pair:
    """The files of a target, its source and further conditions, by these names."""

    files: dict[str, Path]
    text: Subject = ""


@dataclass(frozen=True)
class PairFiles:
    """How pairs lie on the disk.

    Raises:
        ValueError: names that are taken or missing, or class ids side by side.
    """

    conds: Sequence[str] = ()  # further folders or columns that belong to each pair
    columns: Sequence[str] | None = None  # what stands side by side in one picture, from left to right
    class_maps: Sequence[str] = ()  # folders or columns whose pictures hold class ids
    reverse: bool = False  # whether source and target exchange their places
    max_pixels: int = 64_000_000  # files with more are refused before they are decoded
    names: tuple[str, ...] = field(init=False)  # target, source and the others

    def __post_init__(self) -> None:
        names = ("target", "source", *self.conds)
        object.__setattr__(self, "names", names)
        if len(set(names)) < len(names) or set(names) & set(_RESERVED):
            raise ValueError(
                f"datamodule.conds is {list(self.conds)}; expected different names other than target, source and "
                f"{', '.join(_RESERVED)}"
            )
        if self.columns is not None and sorted(self.columns) != sorted(names):
            raise ValueError(
                f"datamodule.columns is {list(self.columns)}; expected {', '.join(names)}, each once, as they stand from left "
                "to right"
            )
        if unknown := sorted(set(self.class_maps) - set(names)):
            raise ValueError(f"datamodule.class_maps names {unknown[0]}; expected some of {', '.join(names)}")
        if self.class_maps and self.columns:
            raise ValueError(
                "datamodule.class_maps needs class ids in files of their own, and datamodule.columns takes colours side by side; "
                "leave one of them out"
            )

    @property
    def keys(self) -> dict[str, str]:
        """What a batch calls each picture: the target is its `image`."""
        ends = ("source", "target") if self.reverse else ("target", "source")
        return {ends[0]: "image", ends[1]: "source"} | {name: name for name in self.conds}

    def split(self, root: Path, split: str) -> list[Pair]:
        """The pairs of a split in natural order or that of metadata.jsonl; none if there is no such split.

        Raises:
            OSError, ValueError: If a folder is missing or empty, a picture has no counterpart, or a line is wrong.
        """
        folder, hashed = split_source(root, split)
        if folder is None:
            return []
        pairs = self.found(folder, root)
        if not hashed:
            return pairs
        chosen = set(hashed_split([pair.files["target"] for pair in pairs], root=root, split=split))
        return [pair for pair in pairs if pair.files["target"] in chosen]

    def found(self, folder: Path, root: Path) -> list[Pair]:
        """The pairs of a folder below `root`; errors as `split`."""
        if self.columns is not None:
            return self._captioned([dict.fromkeys(self.names, path) for path in list_images(folder)], root)
        for place in dict.fromkeys((folder, root)):
            if pairs := self._listed(place / "metadata.jsonl", root):
                inside = [pair for pair in pairs if pair.files["target"].is_relative_to(folder)]
                return inside if place != folder else pairs
        for name in self.names:
            if folder.exists() and not (folder / name).is_dir():
                raise FileNotFoundError(f"{str(folder)!r} has no folder {name}/; {_LAYOUTS}")
        return self._captioned(list(self._by_folder(folder)), root)

    def _listed(self, table: Path, root: Path) -> list[Pair]:
        """The pairs of a metadata.jsonl; none if it holds captions alone."""
        lines: dict[str, int] = {}
        pairs, captions = [], 0
        for number, line in json_lines(table):
            try:
                entry = json.loads(line)
                if _file_of(entry, "source") is None:
                    captions += 1
                    continue
                files = {name: normalised(str.encode(_file_of(entry, name)).decode()) for name in self.names}  # type: ignore[arg-type]
                subject = subject_of(entry.get("text"))
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} of {str(table)!r} is not a JSON object that names {', '.join(self.names)} as file names and "
                    f"perhaps a text: {line[:80]!r}"
                ) from error
            if files["target"] in lines:
                raise ValueError(
                    f"line {number} of {str(table)!r} names the target {files['target']!r}, and so does line "
                    f"{lines[files['target']]}; give each target one line"
                )
            lines[files["target"]] = number
            paths = {name: table.parent / text for name, text in files.items()}
            if not paths["target"].is_relative_to(root):
                raise ValueError(
                    f"line {number} of {str(table)!r} names the target {files['target']!r}, which lies outside "
                    f"datamodule.root={root}; name it from the folder of the table"
                )
            pairs.append(Pair(paths, subject))
        if pairs and captions:
            raise ValueError(
                f"{captions} of {captions + len(pairs)} lines of {str(table)!r} name no source; give each line one, or no line"
            )
        return pairs

    def _by_folder(self, folder: Path) -> Iterator[dict[str, Path]]:
        found = {name: by_stem(folder / name) for name in self.names}
        for name in self.names[1:]:
            for one, other in (("target", name), (name, "target")):
                alone = [path for stem, path in found[one].items() if stem not in found[other]]
                if alone:
                    raise ValueError(
                        f"{len(alone)} of {len(found[one])} pictures of {str(folder / one)!r} have no partner in {other}/ (the "
                        f"first is {str(alone[0])!r}); give both one name, or take these pictures out of the folder"
                    )
        for stem in found["target"]:
            yield {name: files[stem] for name, files in found.items()}

    def _captioned(self, files: list[dict[str, Path]], root: Path) -> list[Pair]:
        """With the texts of metadata.jsonl, which name the targets, where there is one."""
        paths = [own["target"] for own in files]
        tables = {
            folder / "metadata.jsonl"
            for path in paths
            for folder in path.parents
            if folder.is_relative_to(root)
        }
        if not any(table.is_file() for table in tables):
            return [Pair(own) for own in files]
        texts = metadata_captions(paths, root=root, required=False)
        return [Pair(own, text) for own, text in zip(files, texts, strict=True)]

    def check(self, pair: Pair) -> None:
        """Reads the headers, and class ids whole.

        Raises:
            UnreadableImage, UnusablePair, UnusableMask: as `read`.
        """
        sizes = {path: check_image(path, max_pixels=self.max_pixels) for path in pair.files.values()}
        self._check_sizes(pair, {name: sizes[path] for name, path in pair.files.items()})
        for name in self.class_maps:
            decode_mask(pair.files[name], self.max_pixels)

    def read(self, pair: Pair) -> dict[str, Tensor]:
        """The pictures by their batch key, uint8 (3, H, W) of one size, class ids in the colours of PASCAL VOC.

        Raises:
            UnreadableImage: A file that cannot be read.
            UnusablePair: Pictures of different sizes, or one that is not of equal parts side by side.
            UnusableMask: Class ids in a JPEG or in several channels.
        """
        keys = self.keys
        if self.columns is not None:
            whole = decode_image(pair.files["target"], self.max_pixels)
            self._check_sizes(pair, {"target": (whole.shape[-2], whole.shape[-1])})
            parts = whole.chunk(len(self.columns), dim=-1)
            return {keys[name]: part for name, part in zip(self.columns, parts, strict=True)}
        pictures = {}
        for name, path in pair.files.items():
            if name in self.class_maps:
                pictures[name] = painted(decode_mask(path, self.max_pixels))
            else:
                pictures[name] = decode_image(path, self.max_pixels)
        self._check_sizes(pair, {name: (p.shape[-2], p.shape[-1]) for name, p in pictures.items()})
        return {keys[name]: picture for name, picture in pictures.items()}

    def _check_sizes(self, pair: Pair, sizes: dict[str, tuple[int, int]]) -> None:
        path, (height, width) = pair.files["target"], sizes["target"]
        if self.columns is not None:
            if width % len(self.columns):
                raise UnusablePair(
                    path,
                    f"is {width} pixels wide, which are not the {len(self.columns)} equal parts of datamodule.columns="
                    f"{list(self.columns)}",
                )
            return
        for name, (own_height, own_width) in sizes.items():
            if (own_height, own_width) != (height, width):
                raise UnusablePair(
                    pair.files[name],
                    f"has {own_width}x{own_height} pixels, but its target {str(path)!r} {width}x{height}; make all pictures of "
                    "a pair of one size",
                )


def _file_of(entry: dict[str, str], name: str) -> str | None:
    """The file that a line gives for a name, under any of the words for it; None if it gives none."""
    words = _COLUMNS.get(name, (name, f"{name}_file_name"))
    return next((entry[word] for word in words if word in entry), None)


def pair_folders(root: Path) -> list[Path]:
    """The folders that hold source/ and target/: `root` or splits in it."""
    folders = (root, *(root / split for split in split_folders(root) or SPLITS))
    return [folder for folder in folders if (folder / "source").is_dir() and (folder / "target").is_dir()]
