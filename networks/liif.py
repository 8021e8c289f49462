"""The query of LIIF, an image as a function of position (Chen et al. 2021, arXiv 2012.09161), exact and without waste.

The textbook runs a network on [features, offset, cell] of the four cells around each pixel. The same function up to rounding:

- the first layer is linear, so its part of the features is computed once per cell; with unfolding it is a 3x3 convolution;
- offsets are separable: a table of rows and one of columns, of exact integers over 2H and 2W;
- the areas that weight the four predictions are bilinear weights. The textbook's are all 0 on the row and column through the
  centre of the last cell, where odd integer scales put pixels, and it takes the plain mean there; here they are bilinear too;
- the last layer is linear and the weights sum to 1, so it comes after the blend.

Shapes: B batch, C feature channels, h/w cells, D width, K output channels, H/W pixels of the whole, R/S rows and columns of a
window, T = B, or 1 where all samples show the same window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

Size = tuple[int, int]
# Top, left, height, width of a region in pixels of the whole.
Window = tuple[int, int, int, int]

# Queries at a time, on a processor for each thread: at width 256 they stay in its cache (2 MB).
_CHUNK, _CHUNK_ELSEWHERE = 1 << 11, 1 << 18
# Of fewer, a matrix product on a processor may sum in another order (below 8, measured with MKL).
_LEAST = 64


@dataclass(frozen=True)
class Taps:
    """Along one axis and for each pixel: a cell, where the pixel lies from its centre, and the weight; each (T, R)."""

    index: Tensor  # int64
    offset: Tensor  # float64, in half cells
    share: Tensor  # float64, those of all taps of a pixel sum to 1

    def part(self, rows: slice) -> "Taps":
        """Those of some pixels."""
        return Taps(self.index[:, rows], self.offset[:, rows], self.share[:, rows])

    def to(self, device: torch.device) -> "Taps":
        """The same on a device."""
        return Taps(*(values.to(device) for values in vars(self).values()))


def axis_taps(
    num_cells: int, num_pixels: int, start: int, count: int, *, nearest: bool = False
) -> list[Taps]:
    """The two cells around each of `count` pixels of an axis, from pixel `start` on; or the nearest one alone. T = 1."""
    double = 2 * num_pixels
    # Pixel j lies at cell ((2j + 1) h - H) / 2H: whole numbers, so that no rounding moves it to a neighbour.
    position = (2 * torch.arange(start, start + count) + 1) * num_cells - num_pixels
    low = torch.div(position + (num_pixels if nearest else 0), double, rounding_mode="floor")
    fraction = (position - low * double).double() / double
    shares = [torch.ones_like(fraction)] if nearest else [1 - fraction, fraction]
    taps = []
    for step, share in enumerate(shares):
        index = (low + step).clamp(0, num_cells - 1)
        offset = (position - index * double).double() / num_pixels
        taps.append(Taps(index[None], offset[None], share[None]))
    return taps


class LiifQuery(nn.Module):
    """f(cell's features, position within the cell, size of a pixel), blended over the four cells around each pixel.

    Args:
        in_channels: C.
        out_channels: K.
        widths: D of the hidden layers, with ReLU; the first width is that of the lifted features.
        unfold: see the 3x3 cells around each, as LIIF does; Kim and Kim 2024 do without.
        ensemble: blend four cells; False = the nearest alone, a quarter of the time (28.97 for 29.00 dB at x4 on DIV2K there).
        max_scale: the largest ratio of pixels to cells that the network is told (Lee and Jin 2022, LTE); None = any.

    Example:
        >>> query = LiifQuery(8, widths=(16, 16))
        >>> lifted = query.lift(torch.rand(1, 8, 4, 6))
        >>> query(lifted, (11, 23)).shape, query(lifted, (11, 23), (2, 5, 4, 3)).shape
        (torch.Size([1, 3, 11, 23]), torch.Size([1, 3, 4, 3]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 3,
        *,
        widths: Sequence[int] = (256, 256, 256, 256),
        unfold: bool = False,
        ensemble: bool = True,
        max_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.kernel_cells = in_channels, 3 if unfold else 1
        self.ensemble, self.max_scale = ensemble, max_scale
        self.num_seen = in_channels * self.kernel_cells**2
        # As in the textbook: features, offset (y, x), cell (y, x).
        sides = [self.num_seen + 4, *widths, out_channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sides[:-1], sides[1:], strict=True))

    def lift(self, features: Tensor) -> Tensor:
        """What the first layer makes of features (B, C, h, w), once per cell: (B, h, w, D)."""
        first: Any = self.layers[0]
        side = self.kernel_cells
        kernel = first.weight[:, : self.num_seen].reshape(-1, self.in_channels, side, side)
        return F.conv2d(features, kernel, first.bias, padding=side // 2).permute(0, 2, 3, 1).contiguous()

    def forward(
        self, lifted: Tensor, size_px: Size, window: Window | None = None, base: Tensor | None = None
    ) -> Tensor:
        """The window (B, K, R, S) of the picture of (H, W) pixels, None = the whole, of what `lift` gave.

        `base` (B, K, h, w) is added, interpolated bilinearly.
        """
        return self.patches(lifted, [size_px], [window or (0, 0, *size_px)], base)

    def patches(
        self, lifted: Tensor, sizes: Sequence[Size], windows: Sequence[Window], base: Tensor | None = None
    ) -> Tensor:
        """As `forward`, of each sample its own window, all of one shape (R, S), of a picture of its own size."""
        (height, width), (num_rows, num_columns) = lifted.shape[1:3], windows[0][2:]
        cells = [(self._cell(height, size[0]), self._cell(width, size[1])) for size in sizes]
        cell = torch.tensor(cells, dtype=torch.float64, device=lifted.device)
        places = list(zip(sizes, windows, strict=True))
        rows = self._taps(height, [(size[0], window[0], num_rows) for size, window in places])
        columns = self._taps(width, [(size[1], window[1], num_columns) for size, window in places])
        # Of a window in a large picture, few cells are read.
        (rows, used_rows), (columns, used_columns) = _from_first(rows), _from_first(columns)
        lifted = lifted[:, used_rows, used_columns].contiguous()
        base = None if base is None else base[..., used_rows, used_columns]
        rows, columns = ([tap.to(lifted.device) for tap in taps] for taps in (rows, columns))
        on_cpu = lifted.device.type == "cpu"
        chunk = _CHUNK * torch.get_num_threads() if on_cpu else _CHUNK_ELSEWHERE
        at_once = max(1, chunk // (len(lifted) * num_columns))
        parts = []
        for first in range(0, num_rows, at_once):
            some = [tap.part(slice(first, first + at_once)) for tap in rows]
            pixels = self._pixels(lifted, some, columns, cell).movedim(-1, 1)
            parts.append(pixels if base is None else pixels + interpolated(base, some, columns))
        return torch.cat(parts, dim=-2)

    def _cell(self, num_cells: int, num_pixels: int) -> float:
        """Side of a pixel in half cells."""
        ratio = num_cells / num_pixels
        return 2 * (ratio if self.max_scale is None else max(ratio, 1 / self.max_scale))

    def _taps(self, num_cells: int, places: Sequence[tuple[int, int, int]]) -> list[Taps]:
        found = [axis_taps(num_cells, *place, nearest=not self.ensemble) for place in places]
        return [
            Taps(*map(torch.cat, zip(*(vars(t).values() for t in taps), strict=True)))
            for taps in zip(*found, strict=True)
        ]

    def _pixels(self, lifted: Tensor, rows: list[Taps], columns: list[Taps], cell: Tensor) -> Tensor:
        """(B, R, S, K) of some rows."""
        batch, height, width, depth = lifted.shape
        num_rows, num_columns = rows[0].index.shape[1], columns[0].index.shape[1]
        lines = torch.arange(batch * num_rows, device=lifted.device).view(batch, num_rows, 1) * width
        sample = torch.arange(batch, device=lifted.device)[:, None] * height
        num_queries = batch * num_rows * num_columns
        blended: Tensor | None = None
        for row in rows:
            chosen = lifted.view(-1, width, depth).index_select(0, (sample + row.index).flatten())
            chosen = chosen.view(batch, num_rows, width, depth)
            chosen += self._term(row.offset, cell[:, 0], axis=0, like=lifted)[:, :, None]
            for column in columns:
                place = (lines + column.index[:, None]).flatten()
                hidden = chosen.view(-1, depth).index_select(0, place)
                hidden.view(batch, num_rows, num_columns, depth).add_(
                    self._term(column.offset, cell[:, 1], axis=1, like=lifted)[:, None]
                )
                hidden = _with_least(hidden).relu_()
                for layer in self.layers[1:-1]:
                    hidden = layer(hidden).relu_()
                if len(rows) == 1:
                    blended = hidden
                    continue
                share = (row.share[:, :, None] * column.share[:, None]).expand(batch, -1, -1).reshape(-1, 1)
                share = _with_least(share.to(hidden.dtype))
                blended = hidden * share if blended is None else blended.addcmul_(hidden, share)
        pixels = self.layers[-1](blended)[:num_queries]
        return pixels.view(batch, num_rows, num_columns, -1)

    def _term(self, offset: Tensor, cell: Tensor, *, axis: int, like: Tensor) -> Tensor:
        """What the first layer adds for offsets (T, R) and pixels' sides (T,) along an axis: (T, R, D)."""
        first: Any = self.layers[0]
        weight = first.weight[:, self.num_seen :]
        offsets, cells = (
            offset[..., None].float() * weight[:, axis],
            cell[:, None, None].float() * weight[:, axis + 2],
        )
        return (offsets + cells).to(like.dtype)


def _from_first(taps: list[Taps]) -> tuple[list[Taps], slice]:
    """Taps that count from the first cell that one of them reads, and the cells that they read."""
    first = int(min(tap.index.min() for tap in taps))
    last = int(max(tap.index.max() for tap in taps))
    return [Taps(tap.index - first, tap.offset, tap.share) for tap in taps], slice(first, last + 1)


def _with_least(queries: Tensor) -> Tensor:
    """Queries (N, D), with zeros behind where there are too few."""
    missing = _LEAST - len(queries)
    return queries if missing <= 0 else F.pad(queries, (0, 0, 0, missing))


def interpolated(base: Tensor, rows: list[Taps], columns: list[Taps]) -> Tensor:
    """Pixels (B, K, R, S) of a picture (B, K, h, w) at the taps: bilinear, with its edges repeated."""
    for axis, taps in ((2, rows), (3, columns)):
        blended = []
        for tap in taps:
            shape = [len(base) if side == 0 else 1 for side in range(4)]
            shape[axis] = -1
            index = tap.index.expand(len(base), -1).reshape(shape)
            share = tap.share.expand(len(base), -1).reshape(shape).to(base.dtype)
            wanted = list(base.shape)
            wanted[axis] = index.shape[axis]
            blended.append(base.gather(axis, index.expand(wanted)) * share)
        base = torch.stack(blended).sum(0)
    return base


class LiifNetwork(ModelMixin, ConfigMixin):
    """A network whose output is a picture of any size: `features` once, then the query at the pixels that are asked for.

    Attributes:
        query: of the features.
    """

    query: LiifQuery

    def called(self) -> list[nn.Module]:
        """The modules that `features` calls."""
        own = [module for module in self.children() if module is not self.query]
        return [m for module in own for m in (module if isinstance(module, nn.ModuleList) else [module])]

    def features(self, given: Tensor) -> Tensor:
        """What the query reads, (B, C, h, w)."""
        raise NotImplementedError(f"{type(self).__name__} must define features(given)")

    def base(self, given: Tensor) -> Tensor | None:
        """A picture (B, 3, h, w) in [0, 1] to which the query adds; None = nothing."""
        return None

    def prepare(self, given: Tensor) -> tuple[Tensor, Tensor | None]:
        """All that does not depend on the size of the picture: the lifted features (B, h, w, D) and the base."""
        return self.query.lift(self.features(given)), self.base(given)

    def window(
        self, prepared: tuple[Tensor, Tensor | None], size_px: Size, window: Window | None = None
    ) -> Tensor:
        """A window (B, 3, R, S) of the picture of (H, W) pixels, about in [0, 1]; None = the whole."""
        return self.patches(prepared, [size_px], [window or (0, 0, *size_px)])

    def patches(
        self, prepared: tuple[Tensor, Tensor | None], sizes: Sequence[Size], windows: Sequence[Window]
    ) -> Tensor:
        """As `window`, of each sample its own, all of one shape, of a picture of its own size."""
        lifted, base = prepared
        return self.query.patches(lifted, sizes, windows, None if base is None else base * 2 - 1) / 2 + 0.5

    def forward(self, given: Tensor, size_px: Size, window: Window | None = None) -> Tensor:
        """`window` of what `prepare` makes of the given."""
        return self.window(self.prepare(given), size_px, window)
