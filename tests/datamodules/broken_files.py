"""Every kind of broken, odd and hostile image file, as a folder."""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MAX_PIXELS = 64_000_000


def noise(height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *, extra: bytes = b"", rows: bytes | None = None) -> bytes:
    """An RGB PNG by hand: the header may say any size, and `extra` stands before the data."""
    data = b"".join(b"\0" + bytes(width * 3) for _ in range(height)) if rows is None else rows
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(entries: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A little-endian TIFF of (tag, type, count, value) with its data at offset 8."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + struct.pack("<I", 0)


def tile_bomb(side: int) -> bytes:
    """8 x 8 pixels of one deflated tile of zeros."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(side * 3)) for _ in range(side)) + packer.flush()
    bits = struct.pack("<HHHxx", 8, 8, 8)
    entries = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 3, 8), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3)]
    tiles = [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8 + len(bits)), (325, 4, 1, len(packed))]
    return tiff(entries + tiles, bits + packed)


def tag_bomb(num_tags: int, num_bytes: int) -> bytes:
    """8 x 8 grey pixels with many tags that all claim the same bytes: num_tags * num_bytes if each is read."""
    entries = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 64)]
    entries += [(40000 + number, 1, num_bytes - 100, 8) for number in range(num_tags)]
    return tiff(entries, b"\x01" * num_bytes)


def webp_canvas(side: int) -> bytes:
    """The header of an animation with a canvas of side x side pixels and no frame."""
    size = struct.pack("<I", side - 1)[:3]
    header = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + size * 2
    body = b"WEBP" + header + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def many_scans(num: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    whole = encoded(Image.fromarray(noise()), "JPEG", progressive=True)
    last = whole[whole.rfind(b"\xff\xda") : -2]
    return whole[:-2] + last * num + b"\xff\xd9"


def frames(kind: str, num: int = 300) -> bytes:
    images = [Image.new("RGB", (8, 8), (number % 256, 0, 0)) for number in range(num)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:])


def write_unusable(folder: Path) -> dict[str, str]:
    """Writes the files that can't be used; returns a part of the reason by name."""
    picture = Image.fromarray(noise(96, 96))
    whole_jpg, whole_png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    zeros = zlib.compress(bytes(4_000_000), 9)
    files = {
        "empty.png": (b"", "it is empty"),
        "text.png": (b"not an image at all\n", "cannot identify it as one of PNG, JPEG"),
        "postscript.png": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "cannot identify it as one of",
        ),
        "half.jpg": (whole_jpg[: len(whole_jpg) // 2], "truncated: its end is missing"),
        "half.png": (whole_png[: len(whole_png) // 2], "truncated: its end is missing"),
        "cut_by_20_bytes.png": (whole_png[:-20], "truncated: its end is missing"),
        "header_9000x9000.png": (png(9000, 9000, rows=b"\0"), "9000x9000 pixels are more than the 64000000"),
        "header_14000x14000.png": (
            png(14000, 14000, rows=b"\0"),
            "196000000 pixels are more than the 64000000",
        ),
        "text_bomb.png": (png(8, 8, extra=chunk(b"zTXt", b"a\0\0" + zeros)), "Decompressed data too large"),
        "profile_bomb.png": (
            png(8, 8, extra=chunk(b"iCCP", b"a\0\0" + zeros)),
            "Decompressed data too large",
        ),
        "tile_bomb.tif": (tile_bomb(9000), "tiles of 9000x9000 pixels are more than the 64000000"),
        "canvas_bomb.webp": (webp_canvas(16000), "256000000 pixels are more than the 64000000"),
        "scan_bomb.jpg": (many_scans(2000), "scans; expected at most 100"),
        "two\nlines.png": (b"", "it is empty"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    reasons = {name: reason for name, (_, reason) in files.items()}
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    reasons |= {"loop.png": "Too many levels of symbolic links", "dangling.png": "No such file or directory"}
    reasons |= {"pipe.png": "it is no regular file"}
    with (folder / "huge.bmp").open("wb") as file:  # sparse: it takes no space
        file.truncate(MAX_PIXELS * 16)
    return reasons | {"huge.bmp": "1024 MB are more than"}


def write_usable(folder: Path) -> list[str]:
    """Writes odd files that are fine, among folders that are traps; returns their names below `folder`."""
    rgb = Image.fromarray(noise())
    rotated = Image.Exif()
    rotated[0x0112] = 6
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "again").symlink_to(folder)  # a loop of folders
    files = {
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "grey_16_bit.png": encoded(Image.fromarray(noise()[..., 0].astype(np.uint16) * 257), "PNG"),
        "alpha.png": encoded(rgb.convert("RGBA"), "PNG"),
        "palette.png": encoded(rgb.quantize(16), "PNG", transparency=0),
        "rotated.jpg": encoded(rgb, "JPEG", exif=rotated),
        "one_pixel.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "line.png": png(20_000, 1),
        "jpeg_named.png": encoded(rgb, "JPEG"),
        "frames.webp": frames("WEBP"),
        "frames.tif": frames("TIFF"),
        "frames.gif.png": frames("GIF"),
        "tag_bomb.tif": tag_bomb(2000, 400_000),
        "good\nlines.png": encoded(rgb, "PNG"),
        "folder.png/inside.png": encoded(rgb, "PNG"),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    try:
        (folder / os.fsdecode(b"no_utf8_\xff.png")).write_bytes(encoded(rgb, "PNG"))
    except OSError:  # macOS takes only UTF-8 names
        return sorted(files)
    return sorted([*files, r"no_utf8_\xff.png"])


def assert_one_sentence(build: Callable[[], object], message: str) -> None:
    """Checks that a data module of wrong data ends in one sentence that holds the pattern."""
    with pytest.raises((ValueError, OSError)) as caught:
        build()
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
