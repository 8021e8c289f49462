"""Images with masks of one or several raters by position."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from datamodules.decode import decode_image
from datamodules.keyed_dataset import Draw, Item, KeyedDataset
from datamodules.mask_files import MaskClasses, MaskedImage, read_masks
from datamodules.options import check_share
from datamodules.view import Transform


@dataclass(frozen=True)
class MaskTransform(Transform):
    """How an image and its masks become a sample; the masks share the image's view, and no colour change."""

    scale: Sequence[float] = (0.8, 1.0)  # range of the sides of random squares, shares of the short side
    brightness: float = 0.0  # largest amount that is added to a training image or taken from it
    contrast: float = 0.0  # a training image is multiplied by 1 - contrast to 1 + contrast

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(brightness=self.brightness, contrast=self.contrast)
        if len(self.scale) != 2 or not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(
                f"datamodule.scale is {list(self.scale)}; expected the smallest and the largest share, above 0 and at most 1"
            )
        if self.size_px is None and self.crop == "random":
            raise ValueError(
                "datamodule.size_px=null keeps images whole, so datamodule.crop=random has nothing to do; set "
                "datamodule.size_px, or datamodule.crop=center"
            )

    @property
    def deterministic(self) -> bool:
        return super().deterministic and not self.brightness and not self.contrast

    def random_side(self, short_px: int, share: float) -> int:
        low, high = self.scale
        return max(1, round(short_px * (low + (high - low) * share)))

    def recolored(self, image: Tensor, uniform: np.ndarray) -> Tensor:
        """The image (3, H, W) in [0, 1] with contrast and brightness changed by two numbers in [0, 1)."""
        if not self.brightness and not self.contrast:
            return image
        from kornia.enhance import adjust_brightness, adjust_contrast

        contrast, brightness = (2 * uniform - 1) * (self.contrast, self.brightness)
        return adjust_brightness(adjust_contrast(image, 1.0 + contrast), brightness)


class MaskDataset(KeyedDataset):
    """Images with masks; a training sample has the mask of one rater, drawn anew in each epoch, others those of all.

    Args:
        pairs, names: The files, and the unique name of each image in batches.
        transform: Size, crop, flip and colours.
        classes: What the masks' values mean.
        seed: Of the augmentation and of the choice of a rater.
        stored: Results of `pair` kept in memory, or None to decode at every access.
    """

    num_draws = 7  # flip, side, top, left, the rater, contrast, brightness
    transform: MaskTransform

    def __init__(
        self,
        pairs: Sequence[MaskedImage],
        *,
        names: Sequence[str],
        transform: MaskTransform,
        classes: MaskClasses,
        seed: int = 0,
        stored: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__(names, transform=transform, seed=seed)
        self.pairs, self.classes = list(pairs), classes
        self._stored = stored

    def files(self, index: int, epoch: int | None = None) -> list[Path]:
        return [self.pairs[index].image, *self.pairs[index].masks]

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """The image uint8 (3, H, W) and all raters' class ids (R, H, W), before the sample's view."""
        if self._stored is not None:
            return self._stored[index]
        pair, max_pixels = self.pairs[index], self.transform.max_pixels
        image = decode_image(pair.image, max_pixels)
        size = (image.shape[-2], image.shape[-1])
        return image, read_masks(pair, self.classes, size=size, max_pixels=max_pixels)

    def item(self, index: int, draw: Draw | None) -> Item:
        image, masks = self.pair(index)
        crop = None if draw is None else draw.uniform[1:4]
        view = self.transform.view((image.shape[-2], image.shape[-1]), crop, flip=self.flips(draw))
        shown = view.image(image) / 255.0
        if draw is None:
            masks = view.mask(masks).long()
            return Item(image=shown, mask=masks[0], masks=[masks])
        rater = int(draw.uniform[4] * len(masks))
        return Item(
            image=self.transform.recolored(shown, draw.uniform[5:7]),
            mask=view.mask(masks[rater : rater + 1])[0].long(),
        )
