"""Captions of photos: from metadata.jsonl, from the class folder, from colour names, and how training mixes them."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from datamodules.image_files import split_folders

log = logging.getLogger(__name__)

_VOWEL = re.compile(r"(?!uni|use|usu|eu|one\b|once\b)([aeiou]|hour|honest|heir)", re.IGNORECASE)


@dataclass(frozen=True)
class PhotoCaption:
    """The parts of one photo's caption."""

    subject: str = ""  # what the photo shows
    colors: tuple[str, ...] = ()  # names of its main colours, most frequent first

    def text(self, *, with_subject: bool = True, with_colors: bool = True) -> str:
        """The chosen parts joined by a comma; a part that is all there is stays, so only empty captions are empty.

        Example:
            >>> PhotoCaption("a photo of a rose", ("red", "green")).text()
            'a photo of a rose, red and green'
        """
        *first, last = self.colors or ("",)
        colors = f"{', '.join(first)} and {last}" if first else last
        parts = [self.subject if with_subject else "", colors if with_colors else ""]
        return ", ".join(filter(None, parts)) or self.subject or colors


def singular(word: str) -> str:
    """English singular by spelling alone: sunflowers -> sunflower, berries -> berry; ibis and lotus stay."""
    lower = word.lower()
    kept = ("ss", "us", "is", "series", "species")
    if len(word) < 4 or not lower.endswith("s") or lower.endswith(kept):
        return word
    if lower.endswith("ies"):
        return word[:-3] + "y"
    if lower.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1]


def class_caption(folder: str, *, template: str) -> str:
    """Caption of a class folder; `{a_class}` becomes the name with its article and `{class}` the name.

    Example:
        >>> class_caption("water_lilies", template="a photo of {a_class}")
        'a photo of a water lily'
    """
    words = folder.replace("_", " ").split()
    if not words:
        return ""
    name = " ".join([*words[:-1], singular(words[-1])])
    article = "an" if _VOWEL.match(name) else "a"
    return template.replace("{a_class}", f"{article} {name}").replace("{class}", name)


def class_folder(path: Path, *, root: Path, splits: list[str]) -> str:
    """Name of the folder that holds `path`, or "" if that is the root or a split's folder."""
    folders = path.relative_to(root).parts[:-1]
    if folders and folders[0] in splits:
        folders = folders[1:]
    return folders[-1] if folders else ""


def class_captions(paths: list[Path], *, root: Path, template: str) -> list[str]:
    """Captions of files below `root` from their class folders; ValueError if none lies in one."""
    splits = split_folders(root)
    folders = [class_folder(path, root=root, splits=splits) for path in paths]
    if not any(folders):
        raise ValueError(
            f"captions are taken from class folders, but the images of {str(root)!r} lie in none; sort them into folders "
            "or set datamodule.caption=colors or none"
        )
    return [class_caption(folder, template=template) for folder in folders]


def read_metadata(path: Path) -> dict[str, str]:
    """Captions by file name of a metadata.jsonl, if there is one: `file_name` and `text` in each line (ImageFolder)."""
    captions: dict[str, str] = {}
    content = path.read_bytes() if path.is_file() else b""
    # Not splitlines: it also breaks at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            captions[str(entry["file_name"])] = str(entry["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number} of {str(path)!r} is not a JSON object with the keys file_name and text: {line[:80]!r}"
            ) from error
    return captions


def metadata_captions(paths: list[Path], *, root: Path) -> list[str]:
    """Captions of files below `root`, each from the nearest metadata.jsonl that names it, "" if none does.

    Raises:
        ValueError: If a line is no JSON object with both keys, or none names any of the files.
    """
    table_of = cache(read_metadata)
    captions = [_metadata_caption(path, root, table_of) for path in paths]
    missing = sum(caption is None for caption in captions)
    if missing == len(paths):
        raise ValueError(
            f"datamodule.caption=metadata, but no metadata.jsonl in {str(root)!r} names any of its {len(paths)} images; "
            'add one with lines like {"file_name": "a.jpg", "text": "a red rose"} or set datamodule.caption=none'
        )
    if missing:
        log.warning(
            "%d of %d images have no line in metadata.jsonl; their caption is empty", missing, len(paths)
        )
    return [caption or "" for caption in captions]


def _metadata_caption(path: Path, root: Path, table_of: Callable[[Path], dict[str, str]]) -> str | None:
    for folder in path.parents:
        text = table_of(folder / "metadata.jsonl").get(path.relative_to(folder).as_posix())
        if text is not None or folder == root:
            return text
    return None
