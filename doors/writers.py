"""PNG and TIFF files written strip by strip, in memory that does not grow with the picture's height.

Shapes: R rows of a piece, W pixels, C channels, N bytes of a row.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import tifffile

from datamodules.atomic_files import atomic_file
from datamodules.raster import Raster

# A piece this large stays in a processor's cache while it is filtered and compressed.
_PIECE_BYTES = 1 << 18
# As Pillow's files were: a quarter of the time of the default level 6, a few per cent larger.
_LEVEL = 4
_AVERAGE = 3  # the number of this filter in the PNG specification
_GREY, _RGB = 0, 2
_MAX_TIFF_BYTES = 4_000_000_000  # of pixels; larger files are BigTIFF


def write_png(raster: Raster, path: Path) -> None:
    """Writes a PNG of 8 or 16 bits, grey or RGB; the file appears whole or not at all."""
    height, width = raster.size_px
    depth = np.dtype(raster.dtype).itemsize
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    with atomic_file(path) as file:
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

    with atomic_file(path) as file:
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
    """Rows uint8 (R, N) as PNG stores them: the differences from the mean of the pixels to the left and above.

    `above` (N,) is the row before them, `step` the bytes of a pixel. Photos get 0.4 to 1.1 % larger than with the best
    filter for each row, in less time.
    """
    before = np.concatenate([above[None], rows[:-1]])
    left = np.zeros_like(rows)
    left[:, step:] = rows[:, :-step]
    mean = (left & before) + ((left ^ before) >> 1)  # without a wider type
    kinds = np.full((len(rows), 1), _AVERAGE, np.uint8)
    return np.concatenate([kinds, rows - mean], axis=1).tobytes()


def _chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    if data or name != b"IDAT":
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


WRITERS: dict[str, Callable[[Raster, Path], None]] = {"png": write_png, "tiff": write_tiff}
