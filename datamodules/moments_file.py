"""Latent moments of a data set in one file, with a checksum of each entry in a second one."""

import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from datamodules.atomic_files import atomic_file
from datamodules.decode import UnreadableImage

# A crc32 has 32 bits, so no checksum is this number.
UNREADABLE = 1 << 32
NUM_CHECKED = 256
SPARE_BYTES = 64 * 2**20


def sums_path(path: Path) -> Path:
    """The file of the checksums; written last, so a data file without it is not whole."""
    return path.with_suffix(".crc32.npy")


class MomentsFile:
    """Posterior moments float32 (2Z, h, w) of each photo and its mirror image: a .npy file (2, num photos, 2Z, h, w).

    Entries are read one by one, not mapped into memory: a file that gets shorter while it is in use would end the
    process (SIGBUS) instead of raising.

    Raises:
        OSError, ValueError: If the file is missing or not what `write` wrote.
    """

    _file: BinaryIO | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        data = np.load(path, mmap_mode="r")
        self._sums = np.load(sums_path(path))
        found = (data.ndim, data.dtype, self._sums.dtype, self._sums.shape, path.stat().st_size)
        if found != (5, np.float32, np.uint64, data.shape[:2], data.offset + data.nbytes):
            raise ValueError(
                f"holds {data.dtype} {data.shape} and checksums {self._sums.shape} in {found[-1]} bytes"
            )
        self._offset, self._shape = data.offset, data.shape[2:]
        self._entry_bytes = data.nbytes // (data.shape[0] * data.shape[1])

    def __len__(self) -> int:
        return int(self._sums.shape[1])

    def get(self, index: int, flip: bool) -> Tensor:
        """The moments of photo `index`, of its mirror image with flip=True.

        Raises:
            UnreadableImage: If the photo could not be read when the file was written, or the entry is damaged; then
                the checksums are removed, so that the next start writes the file anew.
        """
        if self._sums[int(flip), index] == UNREADABLE:
            raise UnreadableImage(self.path, f"photo {index} could not be read when its latent was cached")
        content = self._read(index, flip)
        if not self._is_whole(content, index, flip):
            sums_path(self.path).unlink(missing_ok=True)
            what = f"the cached latent of photo {index} is damaged"
            raise UnreadableImage(self.path, f"{what}; the next start of a run encodes all anew")
        return torch.frombuffer(content, dtype=torch.float32).view(self._shape)

    def check(self) -> None:
        """Raises ValueError if one of the entries, spread over the file, is damaged; all of them would take minutes."""
        for index in {int(n) for n in np.linspace(0, len(self) - 1, NUM_CHECKED)}:
            for flip in (False, True):
                if not self._is_whole(self._read(index, flip), index, flip):
                    raise ValueError(f"the entry of photo {index} does not match its checksum")

    def _is_whole(self, content: bytearray, index: int, flip: bool) -> bool:
        return int(self._sums[int(flip), index]) in (UNREADABLE, zlib.crc32(content))

    def _read(self, index: int, flip: bool) -> bytearray:
        if self._file is None:  # opened in the loader's worker
            self._file = self.path.open("rb")
        start = self._offset + (int(flip) * len(self) + index) * self._entry_bytes
        try:
            # Not seek and read: forked workers may share the file's position.
            return bytearray(os.pread(self._file.fileno(), self._entry_bytes, start))
        except OSError as error:
            raise UnreadableImage(self.path, error.strerror or str(error)) from error

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def write(path: Path, chunks: Iterator[tuple[np.ndarray, np.ndarray]], num_photos: int) -> None:
    """Writes the entries of all photos and then of all mirror images; ValueError if the disk has no room for them.

    The chunks are float32 (B, 2Z, h, w) in order, 2 * num_photos entries together, with bool (B,): whether the photo
    could be read.
    """
    sums: list[int] = []
    with atomic_file(path) as file:
        for moments, could_read in chunks:
            if not sums:
                _check_space(path, 2 * num_photos * moments[0].nbytes)
                shape = (2, num_photos, *moments.shape[1:])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            entries = [np.ascontiguousarray(entry, dtype="<f4").tobytes() for entry in moments]
            file.writelines(entries)
            sums += [
                zlib.crc32(entry) if fine else UNREADABLE
                for entry, fine in zip(entries, could_read, strict=True)
            ]
        sums_path(path).unlink(missing_ok=True)
    with atomic_file(sums_path(path)) as file:
        np.save(file, np.array(sums, dtype=np.uint64).reshape(2, num_photos))


def _check_space(path: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes + SPARE_BYTES:
        raise ValueError(
            f"the latent cache {str(path)!r} needs {num_bytes / 2**20:.0f} MiB, but its disk has {free / 2**20:.0f} MiB "
            "free; delete old files there, set callbacks.latent_cache.folder to another disk, or "
            "callbacks.latent_cache=null"
        )
