"""Lists the images of a folder and splits them into train, val and test."""

import hashlib
import os
import re
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SPLITS = ("train", "val", "test")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which img2 comes before img10; ties are broken by the exact name."""
    parts = [part for part in re.split(r"([0-9]+)", name.casefold()) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts] + [(2, 0, name)]


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
    for current, subfolders, files in os.walk(folder, followlinks=True):
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


def hash_split(name: str) -> str:
    """Split of a relative file name by its hash: 90 % train, 5 % val, 5 % test; stable as files are added."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.90 else "val" if share < 0.95 else "test"


def split_images(root: Path) -> dict[str, list[Path]]:
    """Image files of `root` by split: folders train, val, test where present, else by hash of the file name.

    With folders, a missing test is val and a missing val is test; with neither, both are empty. Without them,
    a set too small for a val or test file lends its last train files.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: See `list_images`.
    """
    if (root / "train").is_dir():
        splits = {split: list_images(root / split) if (root / split).is_dir() else [] for split in SPLITS}
        splits["test"] = splits["test"] or splits["val"]
        splits["val"] = splits["val"] or splits["test"]
        return splits
    if (root / "val").is_dir() or (root / "test").is_dir():
        split = "test" if (root / "test").is_dir() else "val"
        files = list_images(root / split)
        other = list_images(root / "val") if (root / "val").is_dir() else files
        return {"train": [], "val": other, "test": files}
    splits = {split: [] for split in SPLITS}
    for path in list_images(root):
        splits[hash_split(path.relative_to(root).as_posix())].append(path)
    for split in ("train", "val", "test"):
        donor = max(splits.values(), key=len)
        if not splits[split] and len(donor) > 1:
            splits[split].append(donor.pop())
    return splits
