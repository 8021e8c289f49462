"""Looks through the files of a data set before anything is trained on them."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from datamodules.decode import UnreadableImage, UnusableMask

log = logging.getLogger(__name__)

F = TypeVar("F")
V = TypeVar("V")


def attempts(files: Sequence[F], read: Callable[[F], V]) -> list[tuple[F, V | UnreadableImage]]:
    """Each of `files` with read(file) or the error that it raised; by several threads."""

    def attempt(file: F) -> V | UnreadableImage:
        try:
            return read(file)
        except UnreadableImage as error:
            return error

    # Pillow and torch release the interpreter lock, so threads decode in parallel.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(zip(files, pool.map(attempt, files), strict=True))


def readable(
    files: Sequence[F], read: Callable[[F], V], *, what: str, max_share: float = 1.0
) -> list[tuple[F, V]]:
    """Those of `files` that can be read, in their order, each with the result; the others are logged in one warning.

    `read` raises UnreadableImage for one that can't be read, and `what` says in messages which part of the data they are.

    Raises:
        ValueError: If there are none, more are unreadable, or for an UnusableMask: it shows a mistake about all of them.
    """
    if not files:
        raise ValueError(f"there is no {what}; add a folder with images for it")
    results = attempts(files, read)
    broken = [result for _, result in results if isinstance(result, UnreadableImage)]
    unusable = [error for error in broken if isinstance(error, UnusableMask)]
    if unusable:
        others = f" ({len(unusable) - 1} other files have such faults)" if len(unusable) > 1 else ""
        raise ValueError(f"{unusable[0]}{others}")
    if broken:
        _report(broken, len(results), max_share)
    if len(broken) == len(results):
        raise ValueError(
            f"none of the {len(results)} images in the {what} can be read; replace them or set datamodule.root to another "
            "folder (the log lists each file with its reason)"
        )
    return [(file, result) for file, result in results if not isinstance(result, UnreadableImage)]


def _report(broken: list[UnreadableImage], num_files: int, max_share: float) -> None:
    share = len(broken) / num_files
    lines = "\n".join(f"  {str(error.path)!r}: {error.reason}" for error in broken)
    skipped = f"skipped {len(broken)} of {num_files} images that cannot be read ({100 * share:.1f} %)"
    log.warning("%s:\n%s", skipped, lines)
    if share > max_share and len(broken) < num_files:
        raise ValueError(
            f"{len(broken)} of {num_files} images cannot be read ({100 * share:.0f} %), more than "
            f"datamodule.max_unreadable_share={max_share:g} allows; the first is {str(broken[0].path)!r}: "
            f"{broken[0].reason} (the log lists all); replace the files, or raise datamodule.max_unreadable_share"
        )
