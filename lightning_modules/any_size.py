"""What the methods share whose pictures have any size: the size that is asked for, regions, strips, evaluation.

Shapes: B batch, h/w pixels of the input, H/W of the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from datamodules.raster import Raster, raster
from diffusion.codecs import Window, strip_windows
from diffusion.seeding import Draws
from lightning_modules.base import Batch, Results, TranslationModule
from lightning_modules.options import option, size
from metrics.resolution import resize_bicubic
from networks.liif import LiifNetwork
from tasks.upscaling import Upscaling

# Larger results are written strip by strip.
_WHOLE_PX = 1 << 22
# Beside the size of the truth, evaluation draws these shares of it, to see whether all show the same.
_OTHER_SHARES = (0.5, 0.75)


def region(text: str) -> Window:
    """Top, left, height and width of a text like 100,200,512,768.

    Raises:
        ValueError: not four whole numbers, or an empty region.
    """
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdigit() for part in parts) or 0 in map(int, parts[2:]):
        raise ValueError(f"crop={text} is not TOP,LEFT,HEIGHT,WIDTH in pixels, such as crop=100,200,512,768")
    top, left, height, width = map(int, parts)
    return top, left, height, width


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """Which size the result has, and which part of it is wanted.

    Raises:
        ValueError: a scale of 0 or less, or a scale and a size.

    Example:
        >>> SizeOptions(scale=3.7).size_px((10, 20)), SizeOptions().size_px((10, 20))
        ((37, 74), (40, 80))
    """

    default_scale: ClassVar[float] = 4.0

    scale: float | None = option(
        "side of the result over side of the input; without it and size= the method's own", None
    )
    size: tuple[int, int] | None = option("HxW of the result, of any aspect", None, parse=size)
    crop: Window | None = option(
        "TOP,LEFT,HEIGHT,WIDTH in pixels of the result: that part alone", None, parse=region
    )

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ValueError(f"scale={self.scale:g} is not a number above 0")
        if self.scale is not None and self.size is not None:
            raise ValueError("scale= and size= both say how large the result is; leave one of them out")

    def size_px(self, own: Sequence[int]) -> tuple[int, int]:
        """(H, W) of the result for an input of (h, w); sides are rounded."""
        if self.size is not None:
            return self.size
        height, width = (max(1, round(side * (self.scale or self.default_scale))) for side in own)
        return height, width

    def window(self, size_px: tuple[int, int]) -> Window:
        """The part of a result of (H, W) that is wanted; a ValueError for one that does not lie in it."""
        if self.crop is None:
            return 0, 0, *size_px
        top, left, height, width = self.crop
        if top + height > size_px[0] or left + width > size_px[1]:
            raise ValueError(
                f"crop={top},{left},{height},{width} ends at {top + height}x{left + width}, outside the result of "
                f"{size_px[0]}x{size_px[1]} pixels; give a region inside it, or a larger scale= or size="
            )
        return self.crop


class AnySize(TranslationModule):
    """Upscales by a method's `strips_of`, at the size and of the region that the options say."""

    task = Upscaling
    Options = SizeOptions
    one_sample = True

    def strips_of(self, low: Tensor, numbers: list[int], options: Any) -> "Strips":
        """What makes rows of the result of pictures (B, 3, h, w) in [0, 1]; `numbers` key the noise of each."""
        raise NotImplementedError(f"{type(self).__name__} must define strips_of(low, numbers, options)")

    @torch.no_grad()
    def results(self, batch: Batch, options: Any) -> Results:
        low, size_px = self._asked(batch, options)
        window, samples = options.window(size_px), []
        for number in range(getattr(options, "num_samples", 1)):
            strips = self.strips_of(low, self.sample_numbers(batch, number), options)
            samples.append(as_result(strips(size_px, window), window))
        return {"image": samples[0] if len(samples) == 1 else samples}

    @torch.no_grad()
    def rows(self, batch: Batch, options: Any) -> Iterator[tuple[str, Results]]:
        low, size_px = self._asked(batch, options)
        strips = self.strips_of(low, self.sample_numbers(batch), options)
        image, *others = (strips.whole(size) for size in (size_px, *other_sizes(size_px)))
        yield "result", {"image": image, "other_sizes": others}

    def _asked(self, batch: Batch, options: Any) -> tuple[Tensor, tuple[int, int]]:
        """The pictures (B, 3, h, w) to upscale, and (H, W): in evaluation the small pictures and the size of the truth."""
        if "low" not in batch:
            low = self.images(batch)
            return low, options.size_px(low.shape[-2:])
        low, (height, width) = self.images(batch, "low"), batch["image"].shape[-2:]
        if options.size is not None or options.crop is not None:
            raise ValueError(
                "size= and crop= have no effect here, where results are as large as the truth; leave them out"
            )
        if options.scale is not None and tuple(low.shape[-2:]) != (
            round(height / options.scale),
            round(width / options.scale),
        ):
            raise ValueError(
                f"scale={options.scale:g} is not that of the small pictures here; set protocol.scale= alone"
            )
        return low, (height, width)

    def protocol(self, options: Any) -> dict[str, Any]:
        return {} if options.scale is None else {"scale": options.scale}


class Strips:
    """Pictures of one content at any size, row by row.

    Args:
        decode: (size_px, window) -> strips of that window, as Codec.decode_strips.
        smallest: (h, w), the least size that it decodes.
    """

    def __init__(self, decode: Any, smallest: tuple[int, int]) -> None:
        self.decode, self.smallest = decode, smallest

    @classmethod
    def of(cls, network: LiifNetwork, given: Tensor) -> "Strips":
        """The pictures that a network makes of what is given, (B, C, h, w)."""

        @torch.no_grad()
        def decode(size_px: tuple[int, int], window: Window) -> Iterator[Tensor]:
            for strip in strip_windows(window):
                yield network.window(prepared, size_px, strip).float().clamp(0, 1)

        with torch.no_grad():
            prepared = network.prepare(given)
        return cls(decode, (given.shape[-2], given.shape[-1]))

    def whole(self, size_px: tuple[int, int]) -> Tensor:
        """The picture (B, 3, H, W)."""
        return torch.cat(list(self(size_px, (0, 0, *size_px))), dim=-2)

    def __call__(self, size_px: tuple[int, int], window: Window) -> Iterator[Tensor]:
        """Pictures (B, 3, up to 256 rows, width) of a window of the picture of (H, W), from top to bottom.

        A side below `smallest` is that one shrunk, bicubic and antialiased, and then whole in memory.
        """
        decoded = max(size_px[0], self.smallest[0]), max(size_px[1], self.smallest[1])
        if decoded == size_px:
            yield from self.decode(size_px, window)
            return
        whole = torch.cat(list(self.decode(decoded, (0, 0, *decoded))), dim=-2)
        top, left, height, width = window
        yield resize_bicubic(whole, size_px)[..., top : top + height, left : left + width]


def other_sizes(size_px: tuple[int, int]) -> list[tuple[int, int]]:
    """At which sizes evaluation decodes what it decodes at (H, W)."""
    return [(round(size_px[0] * share), round(size_px[1] * share)) for share in _OTHER_SHARES]


def as_result(strips: Iterator[Tensor], window: Window) -> Tensor | Raster:
    """Strips (1 or B, 3, rows, W) as one tensor, or as a raster where the picture of a batch of one is large."""
    height, width = window[2:]
    if height * width <= _WHOLE_PX:
        return torch.cat(list(strips), dim=-2)
    arrays = (array for strip in strips for array in raster(strip[0]).strips)
    return Raster(size_px=(height, width), channels=3, strips=arrays)


def random_places(draws: Draws, stream: str, free: Sequence[int]) -> list[tuple[int, int]]:
    """For each sample a top and left, uniform from 0 to what is free of its picture."""
    places = draws.uniform(stream, 2)
    return [(int(y * (room + 1)), int(x * (room + 1))) for (y, x), room in zip(places, free, strict=True)]


def cut(images: Sequence[Tensor] | Tensor, windows: Sequence[Window]) -> Tensor:
    """A window of each image (3, H, W), all of one shape: (B, 3, R, S)."""
    return torch.stack(
        [
            image[:, top : top + h, left : left + w]
            for image, (top, left, h, w) in zip(images, windows, strict=True)
        ]
    )


def random_patches(
    image: Tensor, draws: Draws, *, smallest: int, patch_px: int
) -> tuple[list[tuple[int, int]], list[Window], Tensor]:
    """A random patch of each square image (B, 3, N, N) at a random size: the sizes, the windows and the patches.

    Sides are uniform from `smallest` to N, pictures resized as `resize_bicubic` does, patches (B, 3, P, P).
    """
    largest = image.shape[-1]
    sides = [round(smallest + share * (largest - smallest)) for share in draws.uniform("size")]
    places = random_places(draws, "patch", [side - patch_px for side in sides])
    windows = [(top, left, patch_px, patch_px) for top, left in places]
    resized = [resize_bicubic(one[None], (side, side))[0] for one, side in zip(image, sides, strict=True)]
    return [(side, side) for side in sides], windows, cut(resized, windows)
