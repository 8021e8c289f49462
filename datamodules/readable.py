"""Looks through the files of a data set before anything is trained on them."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from datamodules.decode import UnreadableImage, check_image
from datamodules.photo_dataset import PhotoTransform

log = logging.getLogger(__name__)

Found = tuple[Path, Tensor | None]


def readable(
    paths: Sequence[Path],
    *,
    transform: PhotoTransform,
    keep: bool,
    decode: bool = False,
    max_share: float = 1.0,
) -> list[Found]:
    """The readable ones of `paths` in their order, each with what is stored of it if `keep`, else None.

    Header and end of each file are checked; with `keep` or `decode` it is also decoded. Skipped files are logged in
    one warning, each with its reason.

    Args:
        paths: Image files.
        transform: How they are decoded, and their largest size.
        keep: Return the decoded images.
        decode: Decode the files even if nothing is kept.
        max_share: Largest share of files that may be skipped.

    Raises:
        ValueError: If more are unreadable.
    """

    def attempt(path: Path) -> Tensor | None | UnreadableImage:
        try:
            check_image(path, max_pixels=transform.max_pixels)
            image = transform.stored(path) if keep or decode else None
            return image if keep else None
        except UnreadableImage as error:
            return error

    # Pillow and torch release the interpreter lock, so threads decode in parallel.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        results = list(zip(paths, pool.map(attempt, paths), strict=True))
    broken = [result for _, result in results if isinstance(result, UnreadableImage)]
    if broken:
        _report(broken, len(results), max_share)
    return [(path, result) for path, result in results if not isinstance(result, UnreadableImage)]


def _report(broken: list[UnreadableImage], num_files: int, max_share: float) -> None:
    share = len(broken) / num_files
    lines = "\n".join(f"  {str(error.path)!r}: {error.reason}" for error in broken)
    log.warning(
        "skipped %d of %d images that cannot be read (%.1f %%):\n%s",
        len(broken),
        num_files,
        100 * share,
        lines,
    )
    if share > max_share and len(broken) < num_files:
        raise ValueError(
            f"{len(broken)} of {num_files} images cannot be read ({100 * share:.0f} %), more than "
            f"datamodule.max_unreadable_share={max_share:g} allows; the first is {str(broken[0].path)!r}: "
            f"{broken[0].reason} (the log lists all); replace the files, or raise datamodule.max_unreadable_share"
        )
