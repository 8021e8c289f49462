"""Reads an image file into a tensor, whatever its format and mode, or says why it can't.

Every file takes the same steps: `_opened` holds the limits of files and headers, `_decode` turns the picture upright,
and a function of the wanted result (`_to_rgb`, for one) converts its mode.
"""

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile
from torch import Tensor

# Pillow knows dozens of formats, one of which (EPS) starts another program on what the file says.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
# Largest file: 16-bit RGBA without compression, and as much again as metadata ever take. Pillow reads a WebP and a
# PNG chunk into memory whole.
BYTES_PER_PIXEL, METADATA_BYTES = 8, 16 * 2**20
# Each scan of a progressive JPEG goes over the whole picture, and one takes 31 bytes: 1 MB held 20 minutes of work.
MAX_JPEG_SCANS = 100
# Cameras may append data behind the mark, so it is looked for in the last bytes, not at the very end.
END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
TAIL_BYTES = 65_536
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange the sides

F = TypeVar("F")
V = TypeVar("V")

_limit_lock = threading.Lock()
# One remark for each odd tag, thousands for some files; whether the picture can be used is said by an error.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnreadableImage(ValueError):  # noqa: N818
    """A file that can't be used as an image; `path` and `reason` say which and why."""

    sentence = "cannot read the image {!r}: {}"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(self.sentence.format(str(path), reason))
        self.path, self.reason = path, reason


class UnusableMask(UnreadableImage):
    """A mask that can be read, but is none for its image or its classes."""

    sentence = "the mask {!r} {}"


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
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
        raise UnreadableImage(path, _reason(error, max_pixels)) from error


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


def _open(path: Path, max_pixels: int) -> Image.Image:
    # Pillow's limit is a global. At twice this one it raises, in the case of WebP before memory for the canvas is taken.
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            return Image.open(path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_header(image: Image.Image, path: Path, max_pixels: int) -> None:
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


def _more_than(max_pixels: int) -> str:
    return f" are more than the {max_pixels} allowed by max_pixels"


def _reason(error: Exception, max_pixels: int) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"{re.findall('[0-9]+', str(error))[0]} pixels{_more_than(max_pixels)}"
    if isinstance(error, UnidentifiedImageError):
        return f"cannot identify it as one of {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB image: transparency over white, 16-bit grey scaled to 8 bits, CMYK and palettes converted."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _deep_grey_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)
    # Floats carry no range: [0, 1] if nothing is larger, else [0, 255].
    float_scale = 1.0 if np.nanmax(values, initial=0.0) <= 1.0 else 255.0
    scale = float_scale if image.mode == "F" else 65535.0
    values = np.nan_to_num(values / scale).clip(0.0, 1.0)
    return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))


def check_image(path: Path, *, max_pixels: int) -> tuple[int, int]:
    """Reads the header and, of JPEG and PNG, the end mark, without decoding.

    Returns:
        Height and width of the upright picture.

    Raises:
        UnreadableImage: If it is no image, is too large for `max_pixels` or was cut off.
    """
    with _opened(path, max_pixels) as image:
        width, height = image.size
        # Of a PNG without EXIF in front it would decode all to look behind the pixels.
        has_exif = image.format != "PNG" or "exif" in image.info
        if has_exif and image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS:
            width, height = height, width
        mark = END_MARKS.get(image.format or "")
        if mark is not None and mark not in _tail(path):
            raise UnreadableImage(path, "truncated: its end is missing")
    return height, width


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read()


def decode_image(path: Path, max_pixels: int, *, min_side_px: int | None = None) -> Tensor:
    """Upright RGB picture of a file, uint8 (3, H, W).

    EXIF orientation is applied. Grey, 1-bit, palette, CMYK and 16-bit images are converted, transparency is laid
    over white. The size is checked in the header, before any pixel is decoded. With `min_side_px` a JPEG may be decoded
    at 1/2, 1/4 or 1/8 scale if both sides keep this many pixels: a 12-megapixel photo for 64 pixels takes 0.04 s, not 1 s.

    Raises:
        UnreadableImage: If the file is missing, truncated, too large or no image.
    """
    return _decode(path, max_pixels, _to_rgb, min_side_px)


def decode_rgba(path: Path, max_pixels: int, *, needs_transparency: bool = True) -> Tensor:
    """Upright picture of a file with transparency, uint8 (4, H, W): colours as they are, and their opacity.

    A file without any is refused, or with needs_transparency=False opaque in the colours that `decode_image` gives it.

    Raises:
        UnreadableImage: As `decode_image`, and if the file lacks the transparency that it needs.
    """

    def to_rgba(image: Image.Image) -> Image.Image:
        if image.has_transparency_data:
            return image.convert("RGBA")
        if needs_transparency:
            raise UnreadableImage(path, "it has no transparency")
        return _to_rgb(image).convert("RGBA")

    return _decode(path, max_pixels, to_rgba)


def decode_mask(path: Path, max_pixels: int) -> Tensor:
    """Values of an upright mask (H, W): uint8, or int32 of a file with 16 bits; of a palette picture the indices.

    Raises:
        UnreadableImage: As `decode_image`.
        UnusableMask: If it has several channels, or is a JPEG.
    """
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise UnusableMask(path, "is a JPEG, which changes class ids; store masks as PNG")

    def values(image: Image.Image) -> np.ndarray:
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
    convert: Callable[[Image.Image], Image.Image | np.ndarray],
    min_side_px: int | None = None,
) -> Tensor:
    with _opened(path, max_pixels) as image:
        if min_side_px is not None:
            image.draft(None, (min_side_px, min_side_px))
        image.load()
        array = np.array(convert(ImageOps.exif_transpose(image)))
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
