"""A picture as strips of rows, so that it never needs to be in memory as a whole."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Depth = Literal["uint8", "uint16"]


@dataclass(frozen=True, eq=False)
class Raster:
    """A picture that is made while it is written.

    Example:
        >>> rows = (np.full((1, 4, 1), row, np.uint8) for row in range(3))
        >>> [strip.shape for strip in Raster(size_px=(3, 4), channels=1, strips=rows).checked()]
        [(1, 4, 1), (1, 4, 1), (1, 4, 1)]
    """

    size_px: tuple[int, int]  # (H, W)
    channels: int  # 1 (grey, class ids, maps) or 3 (RGB)
    strips: Iterable[
        np.ndarray
    ]  # (rows, W, channels) from top to bottom, rows as they come; they are read once
    dtype: Depth = "uint8"

    def checked(self) -> Iterator[np.ndarray]:
        """The strips; ValueError for one of another width, depth or number of channels, or for too many or few rows."""
        height, width = self.size_px
        num_rows = 0
        for strip in self.strips:
            if strip.shape[1:] != (width, self.channels) or strip.dtype != self.dtype:
                raise ValueError(
                    f"a strip is {strip.dtype} {strip.shape}; expected {self.dtype} (rows, {width}, {self.channels})"
                )
            num_rows += len(strip)
            yield strip
        if num_rows != height:
            raise ValueError(f"the strips of a picture have {num_rows} rows together; expected {height}")


def raster(picture: Tensor) -> Raster:
    """One picture of a result as a raster of a single strip.

    | dtype, shape | is | written with |
    |---|---|---|
    | float or uint8 (3, H, W) or (1, H, W) | a picture, float in [0, 1] | 8 bits |
    | int64 (H, W) | class ids | 8 bits, or 16 where an id is above 255 |
    | float (H, W) | a map in [0, 1] | 16 bits |

    Raises:
        ValueError: none of these, or class ids below 0 or above 65535.
    """
    values = picture.detach().cpu()
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.is_floating_point():
        array = (values.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    elif values.ndim == 3 and values.shape[0] in (1, 3) and values.dtype == torch.uint8:
        array = values.permute(1, 2, 0).numpy()
    elif values.ndim == 2 and values.is_floating_point():
        array = (values.double().clamp(0, 1) * 65535).round().numpy().astype(np.uint16)[..., None]
    elif values.ndim == 2:
        low, high = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
        if not 0 <= low <= high <= 65535:
            raise ValueError(f"class ids go from {low} to {high}; a file holds 0 to 65535")
        array = values.numpy().astype(np.uint8 if high < 256 else np.uint16)[..., None]
    else:
        raise ValueError(
            f"a result is {values.dtype} {tuple(values.shape)}; expected a picture (3, H, W) or (1, H, W), float in [0, 1] "
            "or uint8, class ids int64 (H, W) or a map float (H, W)"
        )
    height, width, channels = array.shape
    depth: Depth = "uint8" if array.dtype == np.uint8 else "uint16"
    return Raster(size_px=(height, width), channels=channels, strips=[array], dtype=depth)
