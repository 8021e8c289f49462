"""What a user draws on one photo, as read from files or text: hints of its colours and a region to colour."""

import logging
import os
import re
from pathlib import Path

import torch
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


def check_hints(text: str) -> None:
    """Raises a FileNotFoundError or ValueError for a text that is neither a file nor points, before a photo is read."""
    if not _is_file(text):
        _points(text)


def read_hints(text: str, size_px: tuple[int, int], *, max_pixels: int = _MAX_PIXELS) -> KnownColors:
    """Colours from a picture with transparency, of which pixels at least half opaque count, or from points.

    Args:
        text: a file, or `x,y,#rrggbb; x,y,radius,#rrggbb; ...` in pixels from the upper left corner.
        size_px: (H, W) of the upright photo.
        max_pixels: larger files are refused before decoding.

    Raises:
        FileNotFoundError, ValueError: neither a file nor points, a file of another size, one without opaque pixels
            or with no others, a point outside the photo.
    """
    if not _is_file(text):
        return _known_at(_points(text), size_px)
    try:
        layer = decode_rgba(Path(text), max_pixels)
    except UnreadableImage as error:
        raise ValueError(
            f"hints={text}: {error.reason}; expected strokes on a transparent layer, saved as PNG at the photo's size"
        ) from error
    _check_size("hints", text, layer, size_px)
    index = (layer[3].flatten() >= _HALF_OPAQUE).nonzero().squeeze(1)
    if not len(index):
        raise ValueError(f"hints={text} has no opaque pixel; paint the colours that you know")
    if len(index) == layer[3].numel():
        raise ValueError(
            f"hints={text} is opaque everywhere, so that each of its pixels would be a hint; expected strokes on a "
            "transparent layer over the photo: save that layer alone"
        )
    return KnownColors(index, layer[:3].flatten(1)[:, index].T, size_px)


def read_region(text: str, size_px: tuple[int, int], *, max_pixels: int = _MAX_PIXELS) -> Tensor:
    """A region uint8 (H, W) from a grey picture: white = colour here, black = keep what the photo has.

    Raises:
        FileNotFoundError, ValueError: no such file, or no opaque grey picture of the size (H, W), in part lighter than
            half of white.
    """
    if not _is_file(text):
        raise FileNotFoundError(f"mask={text}: no such file")
    try:
        picture = decode_rgba(Path(text), max_pixels, needs_transparency=False)
    except UnreadableImage as error:
        raise ValueError(
            f"mask={text}: {error.reason}; expected a grey picture of the photo's size"
        ) from error
    _check_size("mask", text, picture, size_px)
    if int(picture[3].min()) < 255:
        raise ValueError(
            f"mask={text} has transparent pixels, which say neither colour nor keep; expected a grey picture without "
            "transparency: save it flattened, white = colour here, black = keep what the photo has"
        )
    if int((picture[:3].amax(0) - picture[:3].amin(0)).max()) > _MAX_TINT:
        raise ValueError(
            f"mask={text} is in colour; expected a grey picture: white = colour here, black = keep what the photo has"
        )
    region = picture[1].contiguous()
    _check_white(text, int(region.max()))
    if int(region.min()) == 255:
        log.warning("mask=%s is white everywhere, so all of the photo is coloured", text)
    return region


def _check_white(text: str, lightest: int) -> None:
    """Raises a ValueError for a mask that would do nothing, or next to nothing as its white is no white."""
    if lightest == 0:
        raise ValueError(
            f"mask={text} is black everywhere, so that nothing would be coloured; paint white where the photo is to be "
            "coloured (255, in a file of 16 bits 65535)"
        )
    if lightest < _HALF_WHITE:
        raise ValueError(
            f"mask={text} goes up to {lightest} where white is 255; expected white = colour here, black = keep what the "
            "photo has: save it with 255 for white, in a file of 16 bits with 65535"
        )


def _is_file(text: str) -> bool:
    # Not Path.is_file, which raises where a text of many points is longer than a file's name can be.
    return os.path.isfile(text)


def _points(text: str) -> list[tuple[int, int, int, Tensor]]:
    """x, y, radius and colour uint8 (3,) of each point."""
    found = []
    for word in (part.strip() for part in text.split(";")):
        match = _POINT.fullmatch(word.replace(" ", ""))
        if match is None and "#" not in text:
            raise FileNotFoundError(
                f"hints={text}: no such file; give a PNG with transparency, or points such as 120,40,#a03020"
            )
        if match is None:
            raise ValueError(
                f"hints=: '{word}' is no point; write x,y,#rrggbb or x,y,radius,#rrggbb, several with ; between them"
            )
        x, y, radius, color = match.groups()
        found.append((int(x), int(y), int(radius or 0), torch.tensor([*bytes.fromhex(color)]).byte()))
    return found


def _known_at(points: list[tuple[int, int, int, Tensor]], size_px: tuple[int, int]) -> KnownColors:
    """The pixels within the radius of each point's own, which alone counts where the radius is 0."""
    height, width = size_px
    indices, colors = [], []
    for x, y, radius, color in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"hints=: the point {x},{y} lies outside the photo of {width}x{height} pixels; x goes from 0 to "
                f"{width - 1} and y from 0 to {height - 1}"
            )
        rows = torch.arange(max(0, y - radius), min(height, y + radius + 1))
        columns = torch.arange(max(0, x - radius), min(width, x + radius + 1))
        row, column = ((rows[:, None] - y) ** 2 + (columns - x) ** 2 <= radius**2).nonzero(as_tuple=True)
        indices.append(rows[row] * width + columns[column])
        colors.append(color.expand(len(row), 3))
    return KnownColors(torch.cat(indices), torch.cat(colors), size_px)


def _check_size(name: str, text: str, picture: Tensor, size_px: tuple[int, int]) -> None:
    height, width = picture.shape[-2:]
    if (height, width) != size_px:
        raise ValueError(
            f"{name}={text} is {width}x{height} pixels, but the photo is {size_px[1]}x{size_px[0]} (width x height, turned "
            "upright as its EXIF orientation says); save it at the photo's size"
        )
