"""Files that are written whole or not at all."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` after the block, synced to disk.

    If the block raises, `path` is as before; after a kill a draft named `.NAME.tmp` may lie beside it, or `.HASH.tmp` of a
    name that leaves no room.
    """
    name = os.fsencode(path.name)
    short = path.name if len(name) <= 250 else hashlib.sha256(name).hexdigest()
    draft = path.with_name(f".{short}.tmp")
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
