"""Decodes every file of a data folder in full and lists those that can't be used: python -m datamodules.check root=DIR"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.decode import UnreadableImage, attempts, check_image, decode_image
from datamodules.image_files import SPLITS, list_images, other_pictures
from datamodules.mask_files import MaskedImage, mask_classes, paired, read_masks
from datamodules.pair_files import Pair, PairFiles, pair_folders

MAX_PIXELS = 64_000_000
OF_MASKS = ("num_classes", "ignore_index", "mask_values")
USAGE = (
    "usage: python -m datamodules.check root=DIR [max_pixels=N]; with masks also num_classes=N, ignore_index=N or "
    "mask_values=[0,255], unless root/classes.json says them\n"
)


def mask_folders(root: Path) -> list[Path]:
    """The folders that hold images/ and masks/: `root` or splits in it."""
    return [folder for folder in (root, *(root / split for split in SPLITS)) if (folder / "masks").is_dir()]


def report(root: Path, *, max_pixels: int = MAX_PIXELS, **of_masks: Any) -> bool:
    """Writes what is wrong with each file, and their number; whether all are fine and none is left out.

    Raises:
        OSError, ValueError: If there is no image, none in one of two domains, an image, mask or partner has no counterpart, or the
            classes are not known.
    """
    folders, classes = mask_folders(root), None
    files: Sequence[MaskedImage | Pair]
    layout, what = PairFiles(max_pixels=max_pixels), "images"
    if folders:
        classes = mask_classes(root, **{key: of_masks.get(key) for key in OF_MASKS})
        files, what = [pair for folder in folders for pair in paired(folder)], "images with masks"
    elif pair_folders(root):
        files, what = [pair for folder in pair_folders(root) for pair in layout.found(folder, root)], "pairs"
    else:
        for split in SPLITS:
            domains = [root / f"{split}{domain}" for domain in "AB"]
            for domain in domains if any(map(Path.is_dir, domains)) else ():
                list_images(domain)
        files = [MaskedImage(path, ()) for path in list_images(root)]

    def read(entry: MaskedImage | Pair) -> None:
        if isinstance(entry, Pair):
            layout.check(entry)
            layout.read(entry)
            return
        size = check_image(entry.image, max_pixels=max_pixels)
        decode_image(entry.image, max_pixels)
        if classes is not None:
            read_masks(entry, classes, size=size, max_pixels=max_pixels)

    results = attempts(files, read)
    broken = [error for _, error in results if isinstance(error, UnreadableImage)]
    for error in broken:
        sys.stdout.write(f"{str(error.path)!r}: {error.reason}\n")
    others = other_pictures(root)
    for path in others:
        sys.stdout.write(f"{str(path)!r}: left out, a picture of a kind or name that is not read\n")
    left_out = f", {len(others)} left out" if others else ""
    sys.stdout.write(f"{len(results)} {what}, {len(broken)} broken{left_out}\n")
    return not broken and not others


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 if all images are fine, 1 if some are broken or left out, 2 for a wrong call."""
    words = dict(argument.partition("=")[::2] for argument in arguments)
    root = Path(words.pop("root", ""))
    allowed = ("max_pixels", *(OF_MASKS if mask_folders(root) else ()))
    if root == Path() or not set(words) <= set(allowed):
        sys.stderr.write(USAGE)
        return 2
    try:
        return 0 if report(root, **{key: json.loads(value) for key, value in words.items()}) else 1
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
