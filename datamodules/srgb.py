"""Brings a picture's colours to sRGB: embedded profiles, grey of more than 8 bits, transparency."""

import io
import logging
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from datamodules.unreadable import UnreadableImage

log = logging.getLogger(__name__)

SRGB = ImageCms.createProfile("sRGB")
# A profile that moves no colour by more levels is sRGB: makers round its curve, and its pictures stay as they are.
SRGB_LEVELS = 2
MODES = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}  # what littlecms is given; others as RGB
SPACES = {"L": "GRAY", "I;16": "GRAY"}  # of a profile, where it has another name than the mode
STORE_AS = "store it as 8 or 16 bits without sign"

_reported: set[tuple[Path, int]] = set()


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """RGB image: transparency over white, 16-bit grey scaled to 8 bits, CMYK and palettes converted."""
    image = to_srgb(image, path)
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def to_srgb(image: Image.Image, path: Path) -> Image.Image:
    """The picture with its colours in sRGB, and grey of more than 8 bits in 8; itself if nothing is to be done.

    A profile that can't be used is left aside, with one warning for all files of a folder that have it.
    """
    check_numbers(image, path)
    deep = _deep_grey(image, path) if is_deep_grey(image) else None
    plain = image if deep is None else _grey(deep, np.uint8)
    transform = srgb_transform(image, path)
    if transform is None:
        return plain
    if deep is not None and transform.input_mode == "I;16":
        ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
        table = np.asarray(transform.apply(Image.fromarray(ramp))).reshape(-1, 3)
        return Image.fromarray(table[np.asarray(_grey(deep, np.uint16))])
    opaque = plain.convert("RGBA") if plain.has_transparency_data else plain
    alpha = opaque.getchannel("A") if opaque.mode == "RGBA" else None
    result = transform.apply(opaque.convert(transform.input_mode))
    if alpha is not None:
        result.putalpha(alpha)
    return result


def srgb_transform(image: Image.Image, path: Path) -> ImageCms.ImageCmsTransform | None:
    """What brings the picture's colours to sRGB; None without a usable profile, and if it is sRGB."""
    if "icc_profile" not in image.info:
        return None
    profile = image.info["icc_profile"] or b""
    try:
        return _transform_of(profile, "I;16" if is_deep_grey(image) else MODES.get(image.mode, "RGB"))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        key = (path.parent, hash(profile))
        if key not in _reported:
            _reported.add(key)
            log.warning(
                "the colour profile of %r cannot be used: %s; its colours are read as sRGB", str(path), error
            )
        return None


@lru_cache(maxsize=16)
def _transform_of(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Relative colorimetric with black point compensation; of a grey picture also by a profile of RGB. None = sRGB.

    Raises:
        PyCMSError, OSError, ValueError: If littlecms can't read the profile, or it is for other colours than `mode`.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space == "RGB" and mode in ("L", "I;16"):
        mode = "RGB"
    if space != SPACES.get(mode, mode):
        raise ValueError(f"it is for {space} and the picture is {mode}")
    # Optimised, the dark end of 16 bits was 10 levels off; without, a million pixels take 0.4 s.
    transform = ImageCms.ImageCmsTransform(
        source,
        ImageCms.ImageCmsProfile(SRGB),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.NOOPTIMIZE if mode == "I;16" else 0),
    )
    if mode == "CMYK":
        return transform
    ramp = np.arange(256, dtype=np.uint8)
    colors = np.stack(np.meshgrid(*[ramp[::15]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    greys = np.repeat(ramp[:, None], 3, axis=1)
    probe = np.concatenate([colors, greys])[None] if mode == "RGB" else ramp[None]
    shown = Image.fromarray(probe if mode != "I;16" else probe.astype(np.uint16) * 257)
    as_srgb = np.asarray(Image.fromarray(probe).convert("RGB"), dtype=np.int16)
    moved_by = np.abs(np.asarray(transform.apply(shown)) - as_srgb).max()
    return None if moved_by <= SRGB_LEVELS else transform


def pixels_changed(image: Image.Image, path: Path) -> bool:
    """Whether a picture's profile, or its numbers, make its pixels others than a plain conversion to RGB would."""
    if srgb_transform(image, path) is not None:
        return True
    if not is_deep_grey(image) or not isinstance(image, TiffImageFile):
        return False
    return image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0 or image.tag_v2.get(BITSPERSAMPLE) == (12,)


def is_deep_grey(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits, which Pillow would clip."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def check_numbers(image: Image.Image, path: Path) -> None:
    """Refuses a TIFF whose numbers say nothing of where white is."""
    if not isinstance(image, TiffImageFile):
        return
    bits, kind = image.tag_v2.get(BITSPERSAMPLE, (1,))[0], image.tag_v2.get(SAMPLEFORMAT, (1,))[0]
    if kind == 2 or (kind == 1 and bits == 32):
        sign = "signed" if kind == 2 else "unsigned"
        raise UnreadableImage(path, f"a TIFF of {sign} {bits}-bit integers; {STORE_AS}")


def _deep_grey(image: Image.Image, path: Path) -> np.ndarray:
    """Grey values (H, W) in [0, 1], float32."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=np.inf, neginf=-np.inf)
    white = 2.0 ** tags.get(BITSPERSAMPLE, (16,))[0] - 1
    if image.mode == "F":
        low, high = values.min(initial=0.0), values.max(initial=0.0)
        if low < 0.0 or high > 255.0:
            raise UnreadableImage(
                path, f"its floats are from {low:g} to {high:g}; expected grey of 0 to 1 or of 0 to 255"
            )
        # Floats carry no range: [0, 1] if nothing is larger, else [0, 255].
        white = 1.0 if high <= 1.0 else 255.0
    values = (values / np.float32(white)).clip(0.0, 1.0)
    return 1.0 - values if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else values


def _grey(values: np.ndarray, dtype: type[np.unsignedinteger]) -> Image.Image:
    return Image.fromarray(np.rint(values * np.float32(np.iinfo(dtype).max)).astype(dtype))
