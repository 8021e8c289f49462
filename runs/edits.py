"""What a user draws on one photo: hints of its colours, a region to colour, and where the walk starts."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from color.hints import KnownColors
from datamodules.decode import UnreadableImage, decode_rgba
from lightning_modules.base import TranslationModule
from lightning_modules.colorizer import Colorizer
from lightning_modules.requests import DrawSettings, Edits
from runs.drawing import check_effect

log = logging.getLogger(__name__)

_POINT = re.compile(r"(-?\d{1,6}),(-?\d{1,6})(?:,(\d{1,6}))?,#([0-9a-fA-F]{6})")
_HALF_OPAQUE = _HALF_WHITE = 128
# JPEG's rounding of a grey picture stays below.
_MAX_TINT = 16


@dataclass(frozen=True)
class EditWords:
    """The options hints=, mask= and start= as the user wrote them."""

    hints: str | None = None
    mask: str | None = None
    start: float = 1.0

    def check(self, given: str | None) -> None:
        """Raises a ValueError for what makes no sense with the input FILE_OR_DIR, before anything is loaded."""
        if not 0 < self.start <= 1:
            raise ValueError(
                f"start={self.start:g} is no level; expected above 0 and at most 1: 1 starts from grey, less from the "
                "photo's own colours"
            )
        for name, text in (("hints", self.hints), ("mask", self.mask)):
            if text and given is not None and Path(given).is_dir():
                raise ValueError(
                    f"{name}= belongs to one photo, but input={given} is a folder; give the photo's file"
                )
        if self.hints and not _is_file(self.hints):
            _points(self.hints)

    def check_module(self, module: TranslationModule, settings: DrawSettings, num_samples: int) -> None:
        """Raises a ValueError for what the model cannot do or what would do nothing."""
        chroma = settings.chroma_scale is not None or settings.ranker is not None
        own = {"hints": self.hints, "mask": self.mask, "start": self.start != 1, "chroma": chroma}
        check_effect(module, own)
        if isinstance(module, Colorizer):
            module.check_edits(hints=bool(self.hints), start=self.start)
        if num_samples > 1 and module.is_deterministic(settings, Edits(start=self.start)):
            raise ValueError(
                f"num_samples={num_samples} would write the same picture {num_samples} times: "
                f"{type(module).__name__} has one result with these settings; leave num_samples out (of a bridge, noise "
                "on its way, module.path.noise_scale, gives several in two steps or more)"
            )

    def read(self, photo: Tensor, *, max_pixels: int) -> Edits:
        """The edits of a photo uint8 (3, H, W).

        Raises:
            FileNotFoundError, ValueError: a file that is missing or unlike what it should be, a point outside.
        """
        size_px = (photo.shape[-2], photo.shape[-1])
        return Edits(
            hints=read_hints(self.hints, size_px, max_pixels=max_pixels) if self.hints else None,
            region=read_region(self.mask, size_px, max_pixels=max_pixels) if self.mask else None,
            start=self.start,
        )


def read_hints(text: str, size_px: tuple[int, int], *, max_pixels: int) -> KnownColors:
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


def read_region(text: str, size_px: tuple[int, int], *, max_pixels: int) -> Tensor:
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
