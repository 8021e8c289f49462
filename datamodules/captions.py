"""Captions of photos: from metadata.jsonl, from the class folder, from colour names, and how training mixes them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

CAPTIONS = ("none", "metadata", "folder", "colors", "folder_colors", "blip")
_VOWEL = re.compile(r"(?!uni|use|usu|eu|one\b|once\b)([aeiou]|hour|honest|heir)", re.IGNORECASE)


@dataclass(frozen=True)
class PhotoCaption:
    """The parts of one photo's caption.

    Args:
        subject: What the photo shows, or "".
        colors: Names of its main colours, most frequent first.
    """

    subject: str = ""
    colors: tuple[str, ...] = ()

    @property
    def color_text(self) -> str:
        """The colour names as a phrase: "red", "red and green", "red, green and blue"."""
        if len(self.colors) < 2:
            return "".join(self.colors)
        return f"{', '.join(self.colors[:-1])} and {self.colors[-1]}"

    def text(self, *, with_subject: bool = True, with_colors: bool = True) -> str:
        """The chosen parts joined by a comma; a part that is all there is stays, so only empty captions are empty.

        Example:
            >>> PhotoCaption("a photo of a rose", ("red", "green")).text()
            'a photo of a rose, red and green'
        """
        subject, colors = self.subject, self.color_text
        parts = [part for part, chosen in ((subject, with_subject), (colors, with_colors)) if part and chosen]
        return ", ".join(parts) if parts else subject or colors


def singular(word: str) -> str:
    """English singular by spelling alone: sunflowers -> sunflower, berries -> berry; ibis and lotus stay."""
    lower = word.lower()
    if lower.endswith(("series", "species")) or not lower.endswith("s") or len(word) < 4:
        return word
    if lower.endswith(("ss", "us", "is")):
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


def read_metadata(path: Path) -> dict[str, str]:
    """Captions by file name of a metadata.jsonl (the ImageFolder convention: `file_name` and `text` in each line).

    Raises:
        ValueError: If a line is no JSON object with both keys; the message names the line.
    """
    captions: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
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


def metadata_caption(path: Path, root: Path, *, tables: dict[Path, dict[str, str]]) -> str:
    """Caption of a file from the nearest metadata.jsonl at or above its folder, up to `root`; "" if none names it.

    Args:
        path: Image file below `root`.
        root: Data folder, the last one searched.
        tables: Tables read so far by folder; extended in place.
    """
    for folder in path.parents:
        if folder not in tables:
            file = folder / "metadata.jsonl"
            tables[folder] = read_metadata(file) if file.is_file() else {}
        text = tables[folder].get(path.relative_to(folder).as_posix())
        if text is not None:
            return text
        if folder == root:
            break
    return ""
