"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` after the block, synced to disk.

    If the block raises, `path` is as before; after a kill a draft named `.NAME.tmp` may lie beside it.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces a small text file."""
    with atomic_file(path) as file:
        file.write(text.encode())
