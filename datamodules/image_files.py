"""Lists the images of a folder and splits them into train, val and test."""

import hashlib
import logging
import os
import re
from pathlib import Path

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SPLITS = ("train", "val", "test")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which img2 comes before img10; ties are broken by the exact name."""
    parts = [part for part in re.split(r"([0-9]+)", name.casefold()) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts] + [(-1, 0, name)]


def list_images(folder: Path) -> list[Path]:
    """Image files below `folder`, recursive, in natural order of their relative names.

    Hidden files and folders are left out, links are followed, and a folder reached twice is read once.

    Raises:
        FileNotFoundError: If `folder` does not exist.
        NotADirectoryError: If it is a file.
        ValueError: If no image lies in it.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"the image folder {str(folder)!r} does not exist; set datamodule.root to a folder of images"
        )
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{str(folder)!r} is a file; set datamodule.root to the folder that holds the images"
        )
    found: list[Path] = []
    num_files = 0
    seen: set[str] = set()
    for current, subfolders, files in os.walk(folder, followlinks=True, onerror=_report):
        real = os.path.realpath(current)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        visible = [name for name in files if not name.startswith(".")]
        num_files += len(visible)
        found += [Path(current, name) for name in visible if name.lower().endswith(IMAGE_SUFFIXES)]
    if not found:
        what = "is empty" if num_files == 0 else f"holds {num_files} files but no image"
        kinds = " ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        raise ValueError(
            f"the image folder {str(folder)!r} {what}; put images ({kinds}) in it or set datamodule.root"
        )
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def _report(error: OSError) -> None:
    log.warning("cannot list the folder %r: %s; its images are left out", error.filename, error.strerror)


def hash_split(name: str) -> str:
    """Split of a relative file name by its hash: 90 % train, 5 % val, 5 % test; stable as files are added."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.90 else "val" if share < 0.95 else "test"


def split_folders(root: Path) -> list[str]:
    """Names among train, val, test that are folders of `root` and stand for splits.

    A single one of them beside other folders is a class of that name, not a split.
    """
    present = [split for split in SPLITS if (root / split).is_dir()]
    if len(present) != 1:
        return present
    folders = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return present if len(folders) == 1 else []


def split_images(root: Path, split: str) -> list[Path]:
    """Image files of one split: its folder where there are split folders, else by hash of the file name.

    With folders, val stands in for a missing test and the reverse, and a missing train is empty. A train folder alone
    is split by hash like a folder without splits. Where the hash gives a split of a small set nothing, it gets the
    last files of the largest split, or the only file.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: See `list_images`.
    """
    folders = split_folders(root) if root.is_dir() else []
    if folders and folders != ["train"]:
        stand_in = {"val": "test", "test": "val"}.get(split, split)
        chosen = split if split in folders else stand_in
        return list_images(root / chosen) if chosen in folders else []
    splits: dict[str, list[Path]] = {name: [] for name in SPLITS}
    for path in list_images(root):
        splits[hash_split(path.relative_to(root).as_posix())].append(path)
    for files in splits.values():
        donor = max(splits.values(), key=len)
        if not files:
            files.append(donor.pop() if len(donor) > 1 else donor[0])
    return splits[split]
