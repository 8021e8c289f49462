"""What cameras, scanners and other people's programs write: files that are fine, refused by name, or left out."""

import io
import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tests.datamodules.broken_files import chunk, encoded, noise
from tests.datamodules.icc import ADOBE_PRIMARIES, cmyk_profile, grey_profile, rgb_profile

VIDEO = b"\0\0\0\x18ftypmp42" + b"\x01\x02" * 100_000


def exif(orientation: int, *, entry: tuple[int, int, int, bytes] | None = None) -> bytes:
    """Little-endian EXIF; `entry` is another tag: number, type, count, its bytes."""
    tags = [struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)]
    data = b""
    if entry is not None:
        tag, kind, count, data = entry
        place = struct.pack("<I", 8 + 2 + 24 + 4) if len(data) > 4 else data.ljust(4, b"\0")
        tags.append(struct.pack("<HHI", tag, kind, count) + place)
        tags.sort(key=lambda packed: struct.unpack("<H", packed[:2]))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + bytes(4) + data


# Pillow reads them, but can't write them.
UNWRITABLE = {
    "rational": (0x011A, 10, 1, struct.pack("<ii", -1, 0)),
    "short": (0x0100, 8, 1, struct.pack("<h", -5)),
    "text": (0x0128, 2, 4, b"abc\0"),
}


def big_endian_exif(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, orientation, 0) + bytes(4)


def late_exif_png(image: Image.Image) -> bytes:
    """A PNG that is turned by a chunk behind its pixels."""
    content = encoded(image, "PNG")
    return content[:-12] + chunk(b"eXIf", exif(6)[6:]) + content[-12:]


def with_segment(jpeg: bytes, data: bytes) -> bytes:
    """A JPEG with an APP1 segment in front of all others."""
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def tiff_of(values: np.ndarray, photometric: str = "minisblack") -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric=photometric)
    return buffer.getvalue()


def usable() -> dict[str, bytes]:
    """Contents of files that are 24 high and 32 wide when they are upright, by name."""
    rgb = Image.fromarray(noise())
    grey, lying = rgb.convert("L"), rgb.transpose(Image.Transpose.ROTATE_90)
    adobe, jpeg = rgb_profile(ADOBE_PRIMARIES, 2.2), encoded(rgb, "JPEG")
    values = np.asarray(grey)
    files = {
        "motion.jpg": jpeg + VIDEO,
        "no_end_but_video.jpg": jpeg[:-2] + VIDEO,
        "twice_turned.jpg": with_segment(encoded(lying, "JPEG", exif=exif(6)), exif(6)),
        "behind.png": encoded(rgb, "PNG") + VIDEO,
        "late_exif.png": late_exif_png(lying),
        "garbage_exif.png": encoded(rgb, "PNG", exif=b"Exif\0\0garbage"),
        "garbage_exif.webp": encoded(rgb, "WEBP", exif=b"Exif\0\0garbage"),
        "big_endian.webp": encoded(lying, "WEBP", exif=big_endian_exif(6)),
        "turned.tif": encoded(lying, "TIFF", tiffinfo={0x0112: 6}),
        "turned.avif": encoded(lying, "AVIF", exif=exif(6)),
        "adobe.jpg": encoded(rgb, "JPEG", icc_profile=adobe),
        "grey_gamma.png": encoded(grey, "PNG", icc_profile=grey_profile(1.8)),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
        "broken_profile.png": encoded(rgb, "PNG", icc_profile=b"no profile"),
        "white_is_zero.tif": tiff_of(values.astype(np.uint16) * 257, "miniswhite"),
        "floats.tif": tiff_of(values.astype(np.float32)),
        "a.jfif": jpeg,
        "a.JPE": jpeg,
        "a.mpo": encoded(rgb, "MPO", save_all=True, append_images=[rgb]),
    }
    for kind, entry in UNWRITABLE.items():
        for suffix in ("jpg", "png", "webp"):
            name = f"unwritable_{kind}.{suffix}"
            files[name] = encoded(lying, suffix.replace("jpg", "jpeg"), exif=exif(6, entry=entry))
    kinds = {
        "gif": "GIF",
        "avif": "AVIF",
        "jp2": "JPEG2000",
        "ppm": "PPM",
        "pcx": "PCX",
        "sgi": "SGI",
        "tga": "TGA",
    }
    return files | {f"a.{suffix}": encoded(rgb, kind) for suffix, kind in kinds.items()}


def refused() -> dict[str, tuple[bytes, str]]:
    """Contents and a part of the reason of files that are no pictures one can use, by name."""
    thumbnail = encoded(Image.fromarray(noise(8, 8)), "JPEG")
    jpeg = with_segment(encoded(Image.fromarray(noise(96, 96)), "JPEG"), b"thumbnail" + thumbnail)
    return {
        "half_with_thumbnail.jpg": (jpeg[:-2000], "truncated: its end is missing"),
        "no_end.png": (encoded(Image.fromarray(noise()), "PNG")[:-12], "truncated: its end is missing"),
        "uint32.tif": (tiff_of(np.full((9, 9), 40_000, np.uint32)), "a TIFF of unsigned 32-bit integers"),
        "int16.tif": (tiff_of(np.full((9, 9), 40, np.int16)), "a TIFF of signed 16-bit integers"),
        "float_65535.tif": (tiff_of(np.full((9, 9), 65535, np.float32)), "its floats are from 0 to 65535"),
        "float64.tif": (tiff_of(np.ones((9, 9))), "a TIFF of numbers or channels that cannot be read"),
    }


def left_out() -> dict[str, bytes]:
    """Contents of pictures of a kind or name that is not read, by name."""
    jpeg = encoded(Image.fromarray(noise()), "JPEG")
    return {"photo.psd": b"8BPS\0\1", "photo.CR2": b"II*\0", "no_suffix": jpeg, "photo.jpg_large": jpeg}


def write_odd(folder: Path) -> None:
    """Writes all of them, and files that are no pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    others = {"metadata.jsonl": b"", "notes.txt": b"notes", "LICENSE": b"All rights", "clip.mp4": VIDEO}
    contents = usable() | {name: content for name, (content, _) in refused().items()} | left_out() | others
    for name, content in contents.items():
        (folder / name).write_bytes(content)
