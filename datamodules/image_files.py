"""Lists the images of a folder, splits them into train, val and test, and tells whether files have changed."""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from PIL import Image

from datamodules.decode import FORMATS, is_image

log = logging.getLogger(__name__)

Image.init()
# Pillow's own list, without films and arrays, which it names only.
KNOWN_SUFFIXES = {
    suffix: kind
    for suffix, kind in Image.registered_extensions().items()
    if kind in Image.OPEN and kind not in ("MPEG", "HDF5", "GRIB", "BUFR")
}
IMAGE_SUFFIXES = tuple(suffix for suffix, kind in KNOWN_SUFFIXES.items() if kind in FORMATS) + (".mpo",)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# Pictures that Pillow does not know: raw files of cameras and newer formats.
OTHER_PICTURES = (
    *HEIF_SUFFIXES,
    ".jxl",
    ".svg",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".orf",
    ".raf",
    ".rw2",
    ".pef",
)
# What stands beside pictures; other files are looked into, since a picture may have any name.
COMPANIONS = (
    ".txt",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".md",
    ".xml",
    ".xmp",
    ".yaml",
    ".npy",
    ".npz",
    ".pt",
)
SPLITS = ("train", "val", "test")
ENDS_BYTES = 64 * 1024
MAX_NAMED = 10


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which img2 comes before img10; ties are broken by the exact name."""
    parts = [part for part in re.split(r"([0-9]+)", name.casefold()) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts] + [(-1, 0, name)]


def list_images(folder: Path) -> list[Path]:
    """Image files below `folder`, recursive, in natural order of their relative names.

    Hidden files and folders are left out, links are followed, and a folder reached twice is read once. One warning names
    the `other_pictures`.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: If `folder` does not exist, is a file or has no image in it.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"the image folder {str(folder)!r} does not exist; set datamodule.root to a folder of images"
        )
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{str(folder)!r} is a file; set datamodule.root to the folder that holds the images"
        )
    files = _visible_files(folder)
    found = [path for path in files if path.name.lower().endswith(IMAGE_SUFFIXES)]
    others = [path for path in files if _is_other_picture(path)]
    if others:
        _warn_once(_sentence(others))
    if not found:
        what = f"holds {len(files)} files but no image" if files else "is empty"
        raise ValueError(
            f"the image folder {str(folder)!r} {what}; put images ({' '.join(FORMATS)}) in it or set datamodule.root"
        )
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def by_stem(folder: Path) -> dict[str, Path]:
    """The image files below `folder` by their relative names without suffix; errors as `list_images`, and of two alike."""
    files: dict[str, Path] = {}
    for path in list_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in files:
            raise ValueError(
                f"{str(files[stem])!r} and {str(path)!r} have one name; take one of them out of the folder"
            )
        files[stem] = path
    return files


def other_pictures(folder: Path) -> list[Path]:
    """Pictures below `folder` that `list_images` leaves out: of a kind that is not read, or under a name of no kind."""
    return [path for path in _visible_files(folder) if _is_other_picture(path)]


def _is_other_picture(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in COMPANIONS:
        return False
    return suffix in KNOWN_SUFFIXES or suffix in OTHER_PICTURES or is_image(path)


def _sentence(others: Sequence[Path]) -> str:
    names = ", ".join(repr(str(path)) for path in others[:MAX_NAMED])
    rest = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
    needs_heif = any(path.suffix.lower() in HEIF_SUFFIXES for path in others)
    how = "; for HEIC install the package pillow-heif" if needs_heif else ""
    return f"left out {len(others)} pictures of a kind or name that is not read: {names}{rest}{how}"


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    log.warning("%s", message)  # a folder is listed for each split


def _visible_files(folder: Path) -> list[Path]:
    def report(error: OSError) -> None:
        log.warning("cannot list the folder %r: %s; its images are left out", error.filename, error.strerror)

    found: list[Path] = []
    seen: set[str] = set()
    for current, subfolders, files in os.walk(folder, followlinks=True, onerror=report):
        real = os.path.realpath(current)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(current, name) for name in files if not name.startswith(".")]
    return found


def printable(path: Path) -> str:
    """The path as text that any log can take: bytes that are no UTF-8 become escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


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


def hashed_split(paths: list[Path], *, root: Path, split: str, splits: Sequence[str] = SPLITS) -> list[Path]:
    """Those of `paths` that the hash of their name below `root` gives to `split`; what other splits get is train's.

    Where the hash gives a split of a small set nothing, it gets the last files of the largest split, or the only file.
    """
    files: dict[str, list[Path]] = {name: [] for name in splits}
    for path in paths:
        name = hash_split(path.relative_to(root).as_posix())
        files[name if name in splits else "train"].append(path)
    for own in files.values():
        donor = max(files.values(), key=len)
        if not own:
            own.append(donor.pop() if len(donor) > 1 else donor[0])
    return files[split]


def split_source(root: Path, split: str) -> tuple[Path | None, bool]:
    """Folder of a split's files, None without such a split, and whether the hash of the names divides it.

    With folders, val stands in for a missing test and the reverse, and a missing train is None. A train folder alone
    is split by hash like a folder without splits.
    """
    folders = split_folders(root) if root.is_dir() else []
    if not folders or folders == ["train"]:
        return (root / "train" if folders else root), True
    stand_in = {"val": "test", "test": "val"}.get(split, split)
    chosen = split if split in folders else stand_in
    return (root / chosen if chosen in folders else None), False


def split_images(root: Path, split: str) -> list[Path]:
    """Image files of one split, none if there is no such split; see `split_source`, `hashed_split` and `list_images`."""
    folder, hashed = split_source(root, split)
    if hashed:
        return hashed_split(list_images(root), root=root, split=split)
    return [] if folder is None else list_images(folder)


def file_states(paths: Sequence[Path]) -> list[str]:
    """Of each file its size, modification time and a hash of its first and last 64 KiB; "missing" if it can't be read.

    Size and time alone miss a file that was exchanged by a tool that keeps both (cp -p, rsync -t). What stays unseen is a
    change in the middle of a large file that keeps its size and time.
    """
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        states = dict(zip(unique, pool.map(_state, unique), strict=True))
    return [states[path] for path in paths]


def _state(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.sha256(file.read(ENDS_BYTES))
            file.seek(max(file.tell(), status.st_size - ENDS_BYTES))
            digest.update(file.read(ENDS_BYTES))
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns} {digest.hexdigest()}"
