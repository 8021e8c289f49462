"""Colour photos that scikit-image ships in its wheel, cut into crops: a data set that is always there."""

from dataclasses import dataclass
from pathlib import Path

import skimage.data
import torch
from torch import Tensor

from datamodules.captions import PhotoCaption, caption_parts
from datamodules.decode import decode_image, resize
from datamodules.photo_dataset import PhotoDataset, PhotoTransform
from datamodules.step_datamodule import StepDataModule, check_choice

# File in skimage/data and what it shows. Grey files, micrographs without a caption and the second picture of the
# stereo pair (motorcycle_right) are left out.
PHOTOS = {
    "astronaut.png": "a photo of an astronaut in an orange space suit",
    "chelsea.png": "a photo of a cat",
    "coffee.png": "a photo of a cup of coffee on a wooden table",
    "hubble_deep_field.jpg": "a photo of galaxies in space",
    "ihc.png": "a microscope photo of stained tissue",
    "motorcycle_left.png": "a photo of a red motorcycle in a garage",
    "retina.jpg": "a photo of a retina",
    "rocket.jpg": "a photo of a rocket at dusk",
}
# Photos are first brought to this short side, so that crops of all photos show things at like scales.
SHORT_SIDE_PX = 400
TRAIN_SHARE = 0.6
TRAIN_SCALES = (1.0, 0.7, 0.5, 0.35)
EVAL_SCALES = (1.0, 0.7)
CAPTIONS = ("none", "folder", "colors", "folder_colors")


@dataclass(frozen=True)
class Region:
    """A rectangle of a photo, in pixels."""

    top: int
    left: int
    height: int
    width: int


def split_region(height: int, width: int, split: str) -> Region:
    """Part of a photo that a split may show: train the left part, val and test the halves of the rest.

    Example:
        >>> split_region(100, 200, "val")
        Region(top=0, left=120, height=50, width=80)
    """
    border = int(width * TRAIN_SHARE)
    if split == "train":
        return Region(0, 0, height, border)
    middle = height // 2
    if split == "val":
        return Region(0, border, middle, width - border)
    return Region(middle, border, height - middle, width - border)


def crop_boxes(region: Region, *, scales: tuple[float, ...], overlap: float) -> list[Region]:
    """Square crops that cover a region, large ones first.

    Args:
        region: Where they lie.
        scales: Sides as shares of the region's short side.
        overlap: Share of its side that a crop has in common with the next, at least.
    """
    boxes: list[Region] = []
    for scale in scales:
        side = int(min(region.height, region.width) * scale)
        stride = max(1, int(side * (1 - overlap)))
        tops, lefts = _starts(region.height - side, stride), _starts(region.width - side, stride)
        boxes += [Region(region.top + top, region.left + left, side, side) for top in tops for left in lefts]
    return boxes


def _starts(length: int, stride: int) -> list[int]:
    num_steps = -(-length // stride)
    return [round(step * length / max(1, num_steps)) for step in range(num_steps + 1)]


class BuiltinPhotosDataModule(StepDataModule):
    """Crops of the colour photos in the installed scikit-image; no file is downloaded.

    The splits show disjoint regions of the same photos, so figures on them say nothing about new photos.
    Batches are those of `PhotosDataModule`.

    Args:
        size_px: Side of the square images.
        batch_size: Samples per process and batch.
        num_workers: Loader processes; 0 loads in the main process.
        seed: Seed of the order and of the augmentation.
        flip_prob: Probability of a left-right flip in training.
        caption: "none", "folder" (what the photo shows), "colors" or "folder_colors".
        caption_drop_colors_prob: Probability that a training caption leaves out its colour names.
        caption_drop_class_prob: Probability that a training caption is its colour names alone.
        val_batch_size: Samples per batch in evaluation; None = batch_size.
        timeout_s: Longest wait for a batch of a worker; 0 waits for ever.

    Raises:
        ValueError: For an unknown option value.
    """

    def __init__(
        self,
        *,
        size_px: int = 64,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        flip_prob: float = 0.5,
        caption: str = "folder",
        caption_drop_colors_prob: float = 0.25,
        caption_drop_class_prob: float = 0.25,
        val_batch_size: int | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            val_batch_size=val_batch_size,
            timeout_s=timeout_s,
        )
        check_choice("caption", caption, CAPTIONS)
        self.caption = caption
        self.transform = PhotoTransform(
            size_px,
            flip_prob=flip_prob,
            caption_drop_colors_prob=caption_drop_colors_prob,
            caption_drop_class_prob=caption_drop_class_prob,
        )

    def build_dataset(self, split: str) -> PhotoDataset:
        """The crops of a split, decoded into memory.

        Raises:
            FileNotFoundError: If the installed scikit-image holds none of the photos.
        """
        folder = Path(skimage.data.__file__).parent
        files = [name for name in sorted(PHOTOS) if (folder / name).is_file()]
        if not files:
            raise FileNotFoundError(
                f"scikit-image holds no photos in {str(folder)!r}; install its wheel or set datamodule=photos and "
                "datamodule.root=DIR"
            )
        crops = [(name, box, image) for name in files for box, image in self._crops(folder / name, split)]
        use_subject, use_colors = caption_parts(self.caption)
        dataset = PhotoDataset(
            [folder / name for name, _, _ in crops],
            names=[f"{Path(name).stem}_{box.top}_{box.left}_{box.height}" for name, box, _ in crops],
            transform=self.transform,
            seed=self.seed,
            stored=torch.stack([image for _, _, image in crops]),
        )
        colors: list[tuple[str, ...]] = [()] * len(dataset)
        if use_colors:
            from datamodules.annotations import color_names

            colors = color_names(dataset)
        dataset.captions = [
            PhotoCaption(PHOTOS[name] if use_subject else "", names)
            for (name, _, _), names in zip(crops, colors, strict=True)
        ]
        return dataset

    def _crops(self, path: Path, split: str) -> list[tuple[Region, Tensor]]:
        image = decode_image(path, self.transform.max_pixels)
        height, width = image.shape[-2:]
        factor = SHORT_SIDE_PX / min(height, width)
        image = resize(image, round(height * factor), round(width * factor))
        size_px = self.transform.size_px
        crops = []
        scales, overlap = (TRAIN_SCALES, 0.75) if split == "train" else (EVAL_SCALES, 0.5)
        region = split_region(image.shape[-2], image.shape[-1], split)
        for box in crop_boxes(region, scales=scales, overlap=overlap):
            square = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
            crops.append((box, resize(square, size_px, size_px)))
        return crops
