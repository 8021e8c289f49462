"""Reads an image file into an RGB tensor, whatever its mode, or says why it can't."""

import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

# Pillow knows dozens of formats, one of which (EPS) starts another program on what the file says.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
# Largest file: 16-bit RGBA without compression, and as much again as metadata ever take. Pillow reads a WebP and a
# PNG chunk into memory whole.
BYTES_PER_PIXEL, METADATA_BYTES = 8, 16 * 2**20
# Each scan of a progressive JPEG goes over the whole picture, and one takes 31 bytes: 1 MB held 20 minutes of work.
MAX_JPEG_SCANS = 100

ORIENTATION = ExifTags.Base.Orientation  # 5 to 8 exchange the sides
_limit_lock = threading.Lock()
# One remark for each odd tag, thousands for some files; whether the picture can be used is said by an error.
warnings.filterwarnings("ignore", module=r"PIL\.")


CANNOT_READ = "cannot read the image "


class UnreadableImage(ValueError):  # noqa: N818
    """A file that can't be used as an image; `path` and `reason` say which and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{CANNOT_READ}{str(path)!r}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type["UnreadableImage"], tuple[Path, str]]:
        return type(self), (self.path, self.reason)


class UnusableMask(UnreadableImage):
    """A mask that can be read, but is none for its image or its classes."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.args = (f"the mask {str(path)!r} {reason}",)


def _check_header(image: Image.Image, path: Path, max_pixels: int) -> None:
    """Refuses what would take much more memory or time than a photo of `max_pixels`."""
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(path, f"its size is {width}x{height}")
    if width * height > max_pixels:
        raise _too_large(path, f"{width}x{height} pixels", max_pixels)
    if isinstance(image, TiffImageFile):
        # A tile is decoded whole, however small the picture: 1 MB of file took 1.1 GB.
        tile_width, tile_height = image.tag_v2.get(TILEWIDTH, 0), image.tag_v2.get(TILELENGTH, 0)
        if tile_width * tile_height > max_pixels:
            raise _too_large(path, f"tiles of {tile_width}x{tile_height} pixels", max_pixels)
    if image.info.get("progressive"):
        num_scans = path.read_bytes().count(b"\xff\xda")
        if num_scans > MAX_JPEG_SCANS:
            raise UnreadableImage(path, f"a JPEG of {num_scans} scans; expected at most {MAX_JPEG_SCANS}")


def _too_large(path: Path, what: str, max_pixels: int) -> UnreadableImage:
    return UnreadableImage(path, f"{what} are more than the {max_pixels} allowed by max_pixels")


def _open(path: Path, max_pixels: int) -> Image.Image:
    # Before anything is opened: a pipe would wait for a writer.
    if path.exists() and not path.is_file():
        raise UnreadableImage(path, "it is no regular file")
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise UnreadableImage(path, "it is empty")
    if num_bytes > max_pixels * BYTES_PER_PIXEL + METADATA_BYTES:
        raise UnreadableImage(
            path,
            f"its {num_bytes / 1e6:.0f} MB are more than the {max_pixels} pixels of max_pixels take",
        )
    # Pillow's limit is a global. At twice this one it raises, in the case of WebP before memory for the canvas is taken.
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            return Image.open(path, formats=FORMATS)
        except Image.DecompressionBombError as error:
            num_pixels = re.search("[0-9]+", str(error))
            raise _too_large(path, f"{num_pixels[0] if num_pixels else 'its'} pixels", max_pixels) from None
        except UnidentifiedImageError:
            raise UnreadableImage(path, f"cannot identify it as one of {', '.join(FORMATS)}") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose header is fine; whatever is raised in the block becomes an UnreadableImage."""
    try:
        with _open(path, max_pixels) as image:
            _check_header(image, path, max_pixels)
            yield image
    except UnreadableImage:
        raise
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more on bad bytes.
        raise UnreadableImage(path, _reason(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB image: transparency over white, 16-bit grey scaled to 8 bits, CMYK and palettes converted."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float32)
        # Floats carry no range: [0, 1] if nothing is larger, else [0, 255].
        float_scale = 1.0 if np.nanmax(values, initial=0.0) <= 1.0 else 255.0
        scale = float_scale if image.mode == "F" else 65535.0
        values = np.nan_to_num(values / scale).clip(0.0, 1.0)
        return Image.fromarray(np.rint(values * 255.0).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


# Cameras may append data behind the mark, so it is looked for in the last bytes, not at the very end.
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 65_536


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read()


def check_image(path: Path, *, max_pixels: int) -> tuple[int, int]:
    """Reads the header and, of JPEG and PNG, the end mark, without decoding.

    Returns:
        Height and width of the upright picture.

    Raises:
        UnreadableImage: If it is no image, is too large for `max_pixels` or was cut off.
    """
    with _opened(path, max_pixels) as image:
        mark = _END_MARKS.get(image.format or "")
        width, height = image.size
        # Of a PNG without EXIF in front it would decode all to look behind the pixels.
        if (image.format != "PNG" or "exif" in image.info) and image.getexif().get(ORIENTATION, 1) >= 5:
            width, height = height, width
        if mark is not None and mark not in _tail(path):
            raise UnreadableImage(path, "truncated: its end is missing")
    return height, width


def decode_image(path: Path, max_pixels: int, *, min_side_px: int | None = None) -> Tensor:
    """Upright RGB picture of a file.

    EXIF orientation is applied. Grey, 1-bit, palette, CMYK and 16-bit images are converted, transparency is laid
    over white. The size is checked in the header, before any pixel is decoded. With `min_side_px` a JPEG may be decoded
    at 1/2, 1/4 or 1/8 scale if both sides keep this many pixels: a 12-megapixel photo for 64 pixels takes 0.04 s, not 1 s.

    Returns:
        uint8 tensor (3, H, W).

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
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
            raise UnusableMask(
                path,
                f"is a picture of the mode {image.mode}; store class ids in one channel, as a grey picture or a palette "
                "picture whose indices are the ids",
            )
        return np.array(image).astype(np.uint8 if image.mode in ("1", "L", "P") else np.int32)

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


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic resize of a uint8 image (3, H, W) to (3, height, width)."""
    if image.shape[-2:] == (height, width):
        return image
    return F.resize(image, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)


def resize_short_side(image: Tensor, short_px: int) -> Tensor:
    """uint8 image (3, H, W) resized so that its shorter side is `short_px`; smaller images are enlarged."""
    height, width = image.shape[-2:]
    factor = short_px / min(height, width)
    return resize(image, max(short_px, round(height * factor)), max(short_px, round(width * factor)))
