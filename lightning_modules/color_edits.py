"""What a user draws on one photo, as read from files or text: hints of its colours and a region to colour."""

import logging
import math
import os
import re
from pathlib import Path

import torch
from skimage.draw import disk
from torch import Tensor

from color.hints import KnownColors
from datamodules.decode import UnreadableImage, decode_rgba

log = logging.getLogger(__name__)

_POINT = re.compile(r"(-?\d{1,6}),(-?\d{1,6})(?:,(\d{1,6}))?,#([0-9a-fA-F]{6})")
_HALF_OPAQUE = _HALF_WHITE = 128
# JPEG's rounding of a grey picture stays below.
_MAX_TINT = 16
# Larger files are refused before decoding, as those of photos are.
_MAX_PIXELS = 64_000_000


def read_hints(text: str, size_px: tuple[int, int]) -> KnownColors:
    """Colours from a picture with transparency, of which pixels at least half opaque count, or from points.

    Args:
        text: a file, or `x,y,#rrggbb; x,y,radius,#rrggbb; ...` in pixels from the upper left corner.
        size_px: (H, W) of the upright photo.

    Raises:
        FileNotFoundError, ValueError: neither a file nor points, a file of another size, one without opaque pixels
            or with no others, a point outside the photo.
    """
    if not _is_file(text):
        return _points(text, size_px)
    expected = "strokes on a transparent layer over the photo: save that layer alone, as PNG"
    layer = _picture("hints", text, size_px, expected)
    index = (layer[3].flatten() >= _HALF_OPAQUE).nonzero().squeeze(1)
    if len(index) in (0, layer[3].numel()):
        raise ValueError(
            f"hints={text} has {'only' if len(index) else 'no'} opaque pixels; expected {expected}"
        )
    return KnownColors(index, layer[:3].flatten(1)[:, index].T, size_px)


def read_region(text: str, size_px: tuple[int, int]) -> Tensor:
    """A region uint8 (H, W) from a grey picture: white = change here, black = keep what the photo has.

    Raises:
        FileNotFoundError, ValueError: no such file, or no opaque grey picture of the size (H, W) with some white.
    """
    if not _is_file(text):
        raise FileNotFoundError(f"mask={text}: no such file")
    expected = (
        "an opaque grey picture of the photo's size: white (255, in 16 bits 65535) = change here, black = keep what the "
        "photo has"
    )
    picture = _picture("mask", text, size_px, expected, needs_transparency=False)
    region, flaw = picture[1].contiguous(), ""
    if int(picture[3].min()) < 255:
        flaw = "has transparent pixels, which say neither colour nor keep"
    elif int((picture[:3].amax(0) - picture[:3].amin(0)).max()) > _MAX_TINT:
        flaw = "is in colour"
    elif int(region.max()) < _HALF_WHITE:
        flaw = f"goes up to {region.max()} where white is 255, so that hardly anything would be coloured"
    if flaw:
        raise ValueError(f"mask={text} {flaw}; expected {expected}")
    if int(region.min()) == 255:
        log.warning("mask=%s is white everywhere, so all of the photo is coloured", text)
    return region


def _is_file(text: str) -> bool:
    # Not Path.is_file, which raises where a text of many points is longer than a file's name can be.
    return os.path.isfile(text)


def _picture(
    name: str, text: str, size_px: tuple[int, int], expected: str, *, needs_transparency: bool = True
) -> Tensor:
    """A file of the photo's size as RGBA, uint8 (4, H, W)."""
    try:
        picture = decode_rgba(Path(text), _MAX_PIXELS, needs_transparency=needs_transparency)
    except UnreadableImage as error:
        raise ValueError(f"{name}={text}: {error.reason}; expected {expected}") from error
    height, width = picture.shape[-2:]
    if (height, width) != size_px:
        raise ValueError(
            f"{name}={text} is {width}x{height} pixels, but the photo is {size_px[1]}x{size_px[0]} (width x height, turned "
            "upright as its EXIF orientation says); save it at the photo's size"
        )
    return picture


def _points(text: str, size_px: tuple[int, int]) -> KnownColors:
    """The pixels within the radius of each point's own, which alone counts where the radius is 0."""
    if "#" not in text:
        raise FileNotFoundError(
            f"hints={text}: no such file; give a PNG with transparency, or points such as 120,40,#a03020"
        )
    height, width = size_px
    indices, colors = [], []
    for word in (part.strip() for part in text.split(";")):
        match = _POINT.fullmatch(word.replace(" ", ""))
        if match is None:
            raise ValueError(
                f"hints=: '{word}' is no point; write x,y,#rrggbb or x,y,radius,#rrggbb, several with ; between them"
            )
        x, y, radius = (int(number or 0) for number in match.groups()[:3])
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"hints=: the point {x},{y} lies outside the photo of {width}x{height} pixels; x goes from 0 to "
                f"{width - 1} and y from 0 to {height - 1}"
            )
        # A disc that its circle belongs to: scikit-image leaves that out.
        row, column = disk((y, x), math.sqrt(radius**2 + 0.5), shape=size_px)
        indices.append(torch.from_numpy(row * width + column))
        colors.append(torch.tensor([*bytes.fromhex(match[4])]).byte().expand(len(row), 3))
    return KnownColors(torch.cat(indices), torch.cat(colors), size_px)
