"""PNG and TIFF files written strip by strip, in memory that does not grow with the picture's height.

Shapes: R rows of a piece, W pixels, C channels, N bytes of a row.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import tifffile

from datamodules.raster import Raster

# A piece this large stays in a processor's cache while it is filtered and compressed.
_PIECE_BYTES = 1 << 18
# As Pillow's files were: a quarter of the time of the default level 6, a few per cent larger.
_LEVEL = 4
_NUM_FILTERS = 3
_GREY, _RGB = 0, 2
_MAX_TIFF_BYTES = 4_000_000_000  # of pixels; larger files are BigTIFF


def write_png(raster: Raster, path: Path) -> None:
    """Writes a PNG of 8 or 16 bits, grey or RGB; the file appears whole or not at all."""
    height, width = raster.size_px
    depth = np.dtype(raster.dtype).itemsize
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    with _appearing(path) as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        kind = _GREY if raster.channels == 1 else _RGB
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, depth * 8, kind, 0, 0, 0))
        above = np.zeros(width * raster.channels * depth, np.uint8)
        for piece in _pieces(raster, ">"):
            _chunk(file, b"IDAT", compressor.compress(_filtered(piece, above, raster.channels * depth)))
            above = piece[-1].copy()
        _chunk(file, b"IDAT", compressor.flush())
        _chunk(file, b"IEND", b"")


def write_tiff(raster: Raster, path: Path) -> None:
    """Writes a TIFF of 8 or 16 bits, grey or RGB, deflated in strips; the file appears whole or not at all."""
    height, width = raster.size_px
    depth = np.dtype(raster.dtype)

    def strips() -> Iterator[bytes]:
        for piece in _pieces(raster, "<"):
            values = piece.view(depth.newbyteorder("<")).reshape(len(piece), width, raster.channels)
            values[:, 1:] -= values[:, :-1].copy()  # horizontal differences, TIFF's predictor 2
            yield zlib.compress(values.tobytes(), _LEVEL)

    with _appearing(path) as file:
        tifffile.imwrite(
            file,
            strips(),
            shape=(height, width, raster.channels)[: 2 if raster.channels == 1 else 3],
            dtype=depth,
            byteorder="<",
            rowsperstrip=_rows_per_piece(raster),
            compression="adobe_deflate",
            predictor=True,
            photometric="minisblack" if raster.channels == 1 else "rgb",
            bigtiff=height * width * raster.channels * depth.itemsize > _MAX_TIFF_BYTES,
            metadata=None,
        )


def _rows_per_piece(raster: Raster) -> int:
    row_bytes = raster.size_px[1] * raster.channels * np.dtype(raster.dtype).itemsize
    return max(1, _PIECE_BYTES // row_bytes)


def _pieces(raster: Raster, order: Literal["<", ">"]) -> Iterator[np.ndarray]:
    """The rows as bytes uint8 (R, N) in an order of bytes, R the same for all pieces but the last."""
    num_rows, width = _rows_per_piece(raster), raster.size_px[1]
    kept = np.empty((num_rows, width, raster.channels), np.dtype(raster.dtype).newbyteorder(order))
    filled = 0
    for strip in raster.checked():
        start = 0
        while start < len(strip):
            taken = strip[start : start + num_rows - filled]
            kept[filled : filled + len(taken)] = taken
            filled, start = filled + len(taken), start + len(taken)
            if filled == num_rows:
                yield kept.view(np.uint8).reshape(num_rows, -1)
                filled = 0
    if filled:
        yield kept[:filled].view(np.uint8).reshape(filled, -1)


def _filtered(rows: np.ndarray, above: np.ndarray, step: int) -> bytes:
    """Rows uint8 (R, N) as PNG stores them: each by the filter whose differences are least, as libpng chooses.

    Args:
        rows: bytes of the pixels.
        above: (N,) bytes of the row before.
        step: bytes of a pixel.
    """
    before = np.concatenate([above[None], rows[:-1]])
    left = np.zeros_like(rows)
    left[:, step:] = rows[:, :-step]
    # Sub, Up and Average of the PNG specification; the mean of two bytes is written without a wider type.
    candidates = np.empty((_NUM_FILTERS, *rows.shape), np.uint8)
    np.subtract(rows, left, out=candidates[0])
    np.subtract(rows, before, out=candidates[1])
    np.subtract(rows, (left & before) + ((left ^ before) >> 1), out=candidates[2])
    sizes = np.minimum(candidates, -candidates).sum(axis=2, dtype=np.uint32)
    chosen = sizes.argmin(axis=0)
    stored = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    stored[:, 0] = chosen + 1
    for number in range(_NUM_FILTERS):
        mine = chosen == number
        stored[mine, 1:] = candidates[number, mine]
    return stored.tobytes()


def _chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    if data or name != b"IDAT":
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when it is complete, and is removed otherwise."""
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("w+b") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


WRITERS: dict[str, Callable[[Raster, Path], None]] = {"png": write_png, "tiff": write_tiff}
