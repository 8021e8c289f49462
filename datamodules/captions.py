"""Captions of photos: from metadata.jsonl, from the class folder, from colour names, and how training mixes them."""

import json
import logging
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.image_files import printable, split_folders

log = logging.getLogger(__name__)

_VOWEL = re.compile(r"(?!uni|use|usu|eu|one\b|once\b)([aeiou]|hour|honest|heir)", re.IGNORECASE)
_NUM_SHOWN = 3  # names in a message

Subject = str | tuple[str, ...]
"""What a photo shows; of several texts training draws one for each sample and evaluation takes the first."""


@dataclass(frozen=True)
class PhotoCaption:
    """The parts of one photo's caption."""

    subject: Subject = ""
    colors: tuple[str, ...] = ()  # names of its main colours, most frequent first

    def text(self, *, with_subject: bool = True, with_colors: bool = True, share: float = 0.0) -> str:
        """The chosen parts joined by a comma; a part that is all there is stays, so only empty captions are empty.

        `share` in [0, 1) says which of several subjects.

        Example:
            >>> PhotoCaption("a photo of a rose", ("red", "green")).text()
            'a photo of a rose, red and green'
        """
        *first, last = self.colors or ("",)
        colors = f"{', '.join(first)} and {last}" if first else last
        subject = self.subject
        if isinstance(subject, tuple):
            subject = subject[int(share * len(subject))]
        parts = [subject if with_subject else "", colors if with_colors else ""]
        return ", ".join(filter(None, parts)) or subject or colors


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
    return printable(Path(folders[-1])) if folders else ""


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


def json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1, without empty ones; none if there is no such file."""
    content = path.read_bytes() if path.is_file() else b""
    # Not splitlines: it also breaks at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, line


def read_metadata(path: Path) -> dict[str, Subject]:
    """Captions by normalised file name of a metadata.jsonl, if there is one: `file_name` and `text` in each line (ImageFolder).

    Raises:
        ValueError: For a line that is something else, and for a second line about one file.
    """
    captions: dict[str, Subject] = {}
    for number, line in json_lines(path):
        try:
            entry = json.loads(line)
            name, subject = normalised(entry["file_name"]), subject_of(entry["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number} of {str(path)!r} is not a JSON object with the keys file_name and text, which is a string, "
                f"a list of strings, or null for none: {line[:80]!r}"
            ) from error
        if name in captions:
            raise ValueError(
                f"line {number} of {str(path)!r} is the second one for {entry['file_name']!r}; give several captions of one "
                "photo as a list in one line"
            )
        captions[name] = subject
    return captions


def normalised(name: str) -> str:
    """A relative file name as it is compared: in Unicode's composed form, with single slashes and without `./`."""
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


def subject_of(text: Any) -> Subject:
    """The captions that `text` of a line holds; ValueError or TypeError for what is no text."""
    texts = ["" if one is None else one for one in (text if isinstance(text, list) else [text])]
    for one in texts:
        str.encode(one)  # half a surrogate would end the run at the first batch that holds it
    return tuple(texts) if len(texts) > 1 else "".join(texts)


def metadata_captions(paths: list[Path], *, root: Path, required: bool = True) -> list[Subject]:
    """Captions of files below `root`, each from the nearest metadata.jsonl that names it, "" if none does.

    Raises:
        ValueError: If a line is wrong (see `read_metadata`), or, where they are required, none names any of the files.
    """
    tables: dict[Path, dict[str, Subject]] = {}

    def found_for(path: Path) -> Subject | None:
        for folder in path.parents:
            if folder not in tables:
                tables[folder] = read_metadata(folder / "metadata.jsonl")
            found = tables[folder].get(normalised(path.relative_to(folder).as_posix()))
            if found is not None or folder == root:
                return found
        return None

    captions = [found_for(path) for path in paths]
    missing = [
        printable(p.relative_to(root)) for p, caption in zip(paths, captions, strict=True) if caption is None
    ]
    if required and len(missing) == len(paths):
        named = _first([name for table in tables.values() for name in table])
        raise ValueError(
            f"datamodule.caption=metadata, but no metadata.jsonl in {str(root)!r} names any of its {len(paths)} images "
            f"({_first(missing)}); "
            + (
                f"the lines name {named}: write the path of each image as it is below the folder of its metadata.jsonl"
                if named
                else 'add one with lines like {"file_name": "a.jpg", "text": "a red rose"} or set datamodule.caption=none'
            )
        )
    if missing:
        log.warning(
            "%d of %d images have no line in metadata.jsonl (%s); their caption is empty",
            len(missing),
            len(paths),
            _first(missing),
        )
    return [caption or "" for caption in captions]


def _first(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_NUM_SHOWN])) + (" ..." if len(names) > _NUM_SHOWN else "")
