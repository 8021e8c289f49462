"""How a picture becomes a sample: one box, size and flip for all that belongs to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from datamodules.options import check_at_least, check_share


@dataclass(frozen=True)
class View:
    """A box of a picture in pixels, resized to `size_px` (height, width) and perhaps mirrored."""

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
        size_px: int,
        side: int | None = None,
        position: np.ndarray | None = None,
        flip: bool = False,
    ) -> "View":
        """A square of a picture of height and width `size`, None = the largest; two numbers in [0, 1) place it, None = centred."""
        side = side or min(size)
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
        return self._of(image, InterpolationMode.BICUBIC)

    def mask(self, mask: Tensor) -> Tensor:
        """The view of masks (R, H, W) of any integer type: the id at the centre of each pixel, so never a new one."""
        # Not NEAREST, which takes the pixel at the corner and so moves the mask against the image.
        return self._of(mask, InterpolationMode.NEAREST_EXACT)

    def _of(self, picture: Tensor, interpolation: InterpolationMode) -> Tensor:
        box = (self.top, self.left, self.height, self.width)
        picture = F.resized_crop(picture, *box, size=list(self.size_px), interpolation=interpolation)
        return picture.flip(-1) if self.flip else picture


def resize_short_side(image: Tensor, short_px: int) -> Tensor:
    """uint8 image (3, H, W) resized so that its shorter side is `short_px`; smaller images are enlarged."""
    height, width = image.shape[-2:]
    factor = short_px / min(height, width)
    size_px = (max(short_px, round(height * factor)), max(short_px, round(width * factor)))
    return View(0, 0, height, width, size_px).image(image)


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

    def random_side(self, short_px: int, share: float) -> int:
        """Side of a random square of a picture with this short side, by a number in [0, 1)."""
        raise NotImplementedError

    def view(self, size: tuple[int, int], uniform: np.ndarray | None = None, *, flip: bool = False) -> View:
        """What a sample shows of a picture of height and width `size`.

        A random square has its side, top and left by the three numbers `uniform` in [0, 1), and is the largest central
        one with None.
        """
        if self.size_px is None or self.crop == "resize":
            return View.whole(size, size_px=self.size_px, flip=flip)
        if uniform is None or self.crop != "random":
            return View.square(size, size_px=self.size_px, flip=flip)
        side = self.random_side(min(size), float(uniform[0]))
        return View.square(size, size_px=self.size_px, side=side, position=uniform[1:], flip=flip)


@dataclass(frozen=True)
class JointTransform(Transform):
    """Of pictures that belong together: one box, flip and turn for all of them."""

    scale: Sequence[float] = (0.8, 1.0)  # range of the sides of random squares, shares of the short side
    symmetries: bool = False  # one of the eight flips and quarter turns of a square, drawn in training

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.scale) != 2 or not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(
                f"datamodule.scale is {list(self.scale)}; expected the smallest and the largest share, above 0 and at most 1"
            )

    @property
    def deterministic(self) -> bool:
        return super().deterministic and not self.symmetries

    def random_side(self, short_px: int, share: float) -> int:
        low, high = self.scale
        return max(1, round(short_px * (low + (high - low) * share)))

    def turned(self, picture: Tensor, share: float) -> Tensor:
        """The picture (..., H, W) in one of the eight positions of a square, by a number in [0, 1)."""
        if not self.symmetries:
            return picture
        number = int(share * 8)
        picture = picture.rot90(number // 2, (-2, -1))
        return picture.flip(-1) if number % 2 else picture
