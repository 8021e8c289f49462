"""How a picture becomes a training sample: one box, size and flip for all that belongs to it."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from datamodules.decode import resize
from datamodules.option_checks import check_at_least, check_share


@dataclass(frozen=True)
class View:
    """A box of a picture in pixels, resized to `size_px` (height, width) and perhaps mirrored.

    Example:
        >>> View.square((4, 6), side=4, size_px=2)
        View(top=0, left=1, height=4, width=4, size_px=(2, 2), flip=False)
    """

    top: int
    left: int
    height: int
    width: int
    size_px: tuple[int, int]
    flip: bool = False

    @classmethod
    def square(
        cls,
        size: tuple[int, int],
        *,
        side: int,
        size_px: int,
        position: np.ndarray | None = None,
        flip: bool = False,
    ) -> "View":
        """A square of a picture of height and width `size`, resized to `size_px`.

        Its side is at most the short side of the picture; `position` are two numbers in [0, 1) that place it, None = in
        the centre.
        """
        free = [length - side for length in size]
        if position is None:
            top, left = (pixels // 2 for pixels in free)
        else:
            top, left = (int(share * (pixels + 1)) for share, pixels in zip(position, free, strict=True))
        return cls(top, left, side, side, (size_px, size_px), flip)

    @classmethod
    def whole(cls, size: tuple[int, int], *, size_px: int | None = None, flip: bool = False) -> "View":
        """The whole picture of height and width `size`, squeezed to a square or at its own size."""
        return cls(0, 0, *size, size if size_px is None else (size_px, size_px), flip)

    def image(self, image: Tensor) -> Tensor:
        """The view of a uint8 image (3, H, W), antialiased."""
        return self._flipped(resize(self._box(image), *self.size_px))

    def mask(self, mask: Tensor) -> Tensor:
        """The view of masks (R, H, W) of any integer type: the id at the centre of each pixel, so never a new one."""
        box = self._box(mask)
        if box.shape[-2:] != self.size_px:
            # Not NEAREST, which takes the pixel at the corner and so moves the mask against the image.
            box = F.resize(box, list(self.size_px), interpolation=InterpolationMode.NEAREST_EXACT)
        return self._flipped(box)

    def _box(self, picture: Tensor) -> Tensor:
        return picture[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def _flipped(self, picture: Tensor) -> Tensor:
        return picture.flip(-1) if self.flip else picture


@dataclass(frozen=True)
class Transform:
    """What all data sets of pictures share of how a file becomes an image."""

    size_px: int | None  # side of the square image; None = own size
    crop: str = "center"  # center (largest central square), resize (squeezed to a square) or random
    flip_prob: float = 0.5  # of a left-right flip in training
    max_pixels: int = 64_000_000  # files with more are refused before they are decoded

    def __post_init__(self) -> None:
        check_at_least(1, size_px=self.size_px, max_pixels=self.max_pixels)
        check_share(flip_prob=self.flip_prob)

    @property
    def deterministic(self) -> bool:
        """Whether it gives one image of a file, up to a flip."""
        return self.crop != "random" and self.size_px is not None
