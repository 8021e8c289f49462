"""Reads an image file into a tensor, whatever its format and mode, or says why it can't.

Every file takes the same steps: `_opened` holds the limits of files and headers, a function of the wanted result
(`to_rgb`, for one) converts colours and mode, and `_decode` turns the picture upright.
"""

import mmap
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile
from torch import Tensor

from datamodules.srgb import STORE_AS, check_numbers, pixels_changed, to_rgb, to_srgb
from datamodules.unreadable import UnreadableImage, UnusableMask

try:
    from pillow_heif import register_heif_opener
except ImportError:
    HEIF: tuple[str, ...] = ()
else:
    register_heif_opener()
    HEIF = ("HEIF",)

# Pillow knows dozens of formats, one of which (EPS) starts another program on what the file says.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "PCX", "SGI", "TGA", *HEIF)
# Largest file: 16-bit RGBA without compression, and as much again as metadata ever take. Pillow reads a WebP and a
# PNG chunk into memory whole.
BYTES_PER_PIXEL, METADATA_BYTES = 8, 16 * 2**20
# Each scan of a progressive JPEG goes over the whole picture, and one takes 31 bytes: 1 MB held 20 minutes of work.
MAX_JPEG_SCANS = 100
TRUNCATED = "truncated: its end is missing"
# Words of a PNG that turn it, also where they stand behind its pixels.
PNG_TURNS, TAIL_BYTES = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation"), 65_536
LOSSY = ("JPEG", "MPO")
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange the sides
MAPPED_MODES = ("L", "P", "RGBA", "CMYK", "I;16", "I;16B")  # that Pillow mapped into memory
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

F = TypeVar("F")
V = TypeVar("V")

_limit_lock = threading.Lock()
# One remark for each odd tag, thousands for some files; whether the picture can be used is said by an error.
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """An image within the limits; whatever is raised in the block becomes an UnreadableImage."""
    try:
        _check_file(path, max_pixels)
        with _open(path, max_pixels) as image:
            _check_header(image, path, max_pixels)
            yield image
    except UnreadableImage:
        raise
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more on bad bytes.
        raise UnreadableImage(path, _reason(error, path, max_pixels)) from error


def _check_file(path: Path, max_pixels: int) -> None:
    # Before anything is opened: a pipe would wait for a writer.
    if path.exists() and not path.is_file():
        raise UnreadableImage(path, "it is no regular file")
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise UnreadableImage(path, "it is empty")
    if num_bytes > max_pixels * BYTES_PER_PIXEL + METADATA_BYTES:
        raise UnreadableImage(
            path, f"its {num_bytes / 1e6:.0f} MB are more than the {max_pixels} pixels of max_pixels take"
        )


def _open(path: Path, max_pixels: int) -> ImageFile.ImageFile:
    # Pillow's limit is a global. At twice this one it raises, in the case of WebP before memory for the canvas is taken.
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            image = Image.open(path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if isinstance(image, TiffImageFile):
        # By this name Pillow would map the pixels into memory, those of a sideways TIFF by its upright size: scrambled.
        image.filename = ""
    return image


def _check_header(image: ImageFile.ImageFile, path: Path, max_pixels: int) -> None:
    """Refuses what would take much more memory or time than a photo of `max_pixels`."""
    areas = {"": image.size}
    if isinstance(image, TiffImageFile):
        # A tile is decoded whole, however small the picture: 1 MB of file took 1.1 GB.
        areas["tiles of "] = (image.tag_v2.get(TILEWIDTH, 0), image.tag_v2.get(TILELENGTH, 0))
    for what, (width, height) in areas.items():
        if width * height > max_pixels:
            raise UnreadableImage(path, f"{what}{width}x{height} pixels{_more_than(max_pixels)}")
    if min(image.size) < 1:
        raise UnreadableImage(path, f"its size is {image.width}x{image.height}")
    if image.info.get("progressive"):
        num_scans = path.read_bytes().count(b"\xff\xda")
        if num_scans > MAX_JPEG_SCANS:
            raise UnreadableImage(path, f"a JPEG of {num_scans} scans; expected at most {MAX_JPEG_SCANS}")
    if image.format == "PNG" and not _has_mark(b"IEND", image, path):
        raise UnreadableImage(path, TRUNCATED)


def _has_mark(mark: bytes, image: ImageFile.ImageFile, path: Path) -> bool:
    """Whether an end mark stands behind the header; a video or the like may follow it."""
    assert image.fp is not None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Not in front: a thumbnail there has an end of its own.
        return content.rfind(mark, image.fp.tell()) >= 0


def _more_than(max_pixels: int) -> str:
    return f" are more than the {max_pixels} allowed by max_pixels"


def _reason(error: Exception, path: Path, max_pixels: int) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"{re.findall('[0-9]+', str(error))[0]} pixels{_more_than(max_pixels)}"
    if "truncated" in str(error).lower():
        return TRUNCATED
    if isinstance(error, UnidentifiedImageError):
        with path.open("rb") as file:
            if file.read(4) in TIFF_STARTS:
                return f"a TIFF of numbers or channels that cannot be read; {STORE_AS}"
        return f"cannot identify it as one of {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def check_image(path: Path, *, max_pixels: int) -> tuple[int, int]:
    """Reads the header and, of JPEG and PNG, looks for the end mark; decodes where they do not tell.

    Returns:
        Height and width of the upright picture.

    Raises:
        UnreadableImage: If it is no image, is too large for `max_pixels` or was cut off.
    """
    with _opened(path, max_pixels) as image:
        check_numbers(image, path)
        if _needs_pixels(image, path):
            to_rgb(image, path)
        width, height = image.size
        return (width, height) if _orientation(image) in SIDEWAYS else (height, width)


def _needs_pixels(image: ImageFile.ImageFile, path: Path) -> bool:
    """Whether only decoding tells if a picture is whole and how it is turned."""
    if image.format == "JPEG":
        return not _has_mark(b"\xff\xd9", image, path)  # some cameras leave it out
    if image.format == "PNG":
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            tail = file.read()
        return any(word in tail for word in PNG_TURNS)
    return image.mode == "F"


def is_image(path: Path) -> bool:
    """Whether the first bytes are those of a format that is read."""
    if not path.is_file():
        return False
    # A TGA has no mark, so that many a file looks like one.
    with suppress(Exception), Image.open(path, formats=[name for name in FORMATS if name != "TGA"]):
        return True
    return False


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 where it can't be read, and of a TIFF, which Pillow turns when it is loaded."""
    if not isinstance(image, TiffImageFile):
        # The base class's: a PNG's own would decode it to look behind the pixels.
        with suppress(Exception):
            return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def pixels_key(path: Path, max_pixels: int) -> str:
    """What a cache's key of a file needs beside its bytes; "" if its pixels are those of DECODING_VERSION 1."""
    with suppress(UnreadableImage), _opened(path, max_pixels) as image:
        if pixels_changed(image, path):
            return " by its numbers or profile"
        if isinstance(image, TiffImageFile):
            is_sideways = image.tag_v2.get(ExifTags.Base.Orientation) in SIDEWAYS
            is_mapped = (
                len(image.tile) == 1 and image.tile[0].codec_name == "raw" and image.mode in MAPPED_MODES
            )
            return " by its orientation" if is_sideways and is_mapped else ""
        if _orientation(image) != 1:
            try:
                Image.Image.getexif(image).tobytes()
            except Exception:
                return " by its orientation"  # writing the EXIF failed, so it was unreadable
    return ""


def decode_image(path: Path, max_pixels: int, *, min_side_px: int | None = None) -> Tensor:
    """Upright RGB picture of a file, uint8 (3, H, W).

    EXIF orientation is applied. Grey, 1-bit, palette, CMYK and 16-bit images are converted, transparency is laid
    over white. The size is checked in the header, before any pixel is decoded. With `min_side_px` a JPEG may be decoded
    at 1/2, 1/4 or 1/8 scale if both sides keep this many pixels: a 12-megapixel photo for 64 pixels takes 0.04 s, not 1 s.

    Raises:
        UnreadableImage: If the file is missing, truncated, too large or no image.
    """
    return _decode(path, max_pixels, to_rgb, min_side_px)


def decode_rgba(path: Path, max_pixels: int, *, needs_transparency: bool = True) -> Tensor:
    """Upright picture of a file with transparency, uint8 (4, H, W): colours as they are, and their opacity.

    A file without any is refused, or with needs_transparency=False opaque in the colours that `decode_image` gives it.

    Raises:
        UnreadableImage: As `decode_image`, and if the file lacks the transparency that it needs.
    """

    def to_rgba(image: Image.Image, path: Path) -> Image.Image:
        if needs_transparency and not image.has_transparency_data:
            raise UnreadableImage(path, "it has no transparency")
        return to_srgb(image, path).convert("RGBA")

    return _decode(path, max_pixels, to_rgba)


def decode_mask(path: Path, max_pixels: int) -> Tensor:
    """Values of an upright mask (H, W): uint8, or int32 of a file with 16 bits; of a palette picture the indices.

    Raises:
        UnreadableImage: As `decode_image`.
        UnusableMask: If it has several channels, or is a JPEG.
    """
    is_jpeg = "is a JPEG, which changes class ids; store masks as PNG"
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise UnusableMask(path, is_jpeg)

    def values(image: Image.Image, path: Path) -> np.ndarray:
        if image.format in LOSSY:
            raise UnusableMask(path, is_jpeg)
        if image.mode in ("1", "L", "P"):
            return np.array(image).astype(np.uint8)
        if image.mode == "I" or image.mode.startswith("I;16"):
            return np.array(image).astype(np.int32)
        raise UnusableMask(
            path,
            f"is a picture of the mode {image.mode}; store class ids in one channel, as a grey picture or a palette "
            "picture whose indices are the ids",
        )

    return _decode(path, max_pixels, values)


def _decode(
    path: Path,
    max_pixels: int,
    convert: Callable[[Image.Image, Path], Image.Image | np.ndarray],
    min_side_px: int | None = None,
) -> Tensor:
    with _opened(path, max_pixels) as image:
        if min_side_px is not None:
            image.draft(None, (min_side_px, min_side_px))
        size = image.size
        image.load()
        if sorted(image.size) != sorted(size):  # of a damaged HEIC; a sideways TIFF exchanges its sides
            raise UnreadableImage(
                path, f"damaged: its header says {size[0]}x{size[1]} pixels, not {image.width}x{image.height}"
            )
        # Not ascontiguousarray, which leaves a side of one pixel its negative stride.
        array = _upright(np.asarray(convert(image, path)), _orientation(image)).copy()
    tensor = torch.from_numpy(array)
    return tensor if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()


def attempts(files: Sequence[F], read: Callable[[F], V]) -> list[tuple[F, V | UnreadableImage]]:
    """Each of `files` with read(file) or the UnreadableImage that it raised; by several threads."""

    def attempt(file: F) -> V | UnreadableImage:
        try:
            return read(file)
        except UnreadableImage as error:
            return error

    # Pillow and torch release the interpreter lock, so threads decode in parallel.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(zip(files, pool.map(attempt, files), strict=True))
