"""Decodes every image of a folder in full and lists those that can't be read: python -m datamodules.check root=DIR"""

import sys
from collections.abc import Sequence
from pathlib import Path

from datamodules.decode import UnreadableImage, check_image, decode_image
from datamodules.image_files import list_images

MAX_PIXELS = 64_000_000


def broken_images(root: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, list[UnreadableImage]]:
    """Number of images below `root`, and the error of each one that can't be read.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: If there is no folder or no image in it.
    """
    paths, broken = list_images(root), []
    for path in paths:
        try:
            check_image(path, max_pixels=max_pixels)
            decode_image(path, max_pixels)
        except UnreadableImage as error:
            broken.append(error)
    return len(paths), broken


def main(arguments: Sequence[str]) -> int:
    """Writes the report; the exit code is 0 if all images are fine, 1 if some are broken, 2 for a wrong call."""
    options = dict(argument.partition("=")[::2] for argument in arguments)
    if "root" not in options or not set(options) <= {"root", "max_pixels"}:
        sys.stderr.write("usage: python -m datamodules.check root=DIR [max_pixels=N]\n")
        return 2
    try:
        num_images, broken = broken_images(
            Path(options["root"]), max_pixels=int(options.get("max_pixels", MAX_PIXELS))
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for problem in broken:
        sys.stdout.write(f"{str(problem.path)!r}: {problem.reason}\n")
    sys.stdout.write(f"{num_images} images, {len(broken)} broken\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
