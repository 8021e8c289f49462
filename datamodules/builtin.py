"""Data sets that are always there: crops of the colour photos that scikit-image ships in its wheel."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import skimage.data

from datamodules.annotations import color_names
from datamodules.captions import PhotoCaption
from datamodules.decode import decode_image
from datamodules.options import from_options
from datamodules.photo_dataset import PhotoDataset, PhotoTransform
from datamodules.step_datamodule import StepDataModule
from datamodules.unpaired import UnpairedDataset
from datamodules.view import View, resize_short_side

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


class Region(NamedTuple):
    """A rectangle of a photo, in pixels."""

    top: int
    left: int
    height: int
    width: int


def split_region(height: int, width: int, split: str) -> Region:
    """Part of a photo that a split may show: train the left part, val and test the halves of the rest."""
    border, middle = int(width * TRAIN_SHARE), height // 2
    if split == "train":
        return Region(0, 0, height, border)
    if split == "val":
        return Region(0, border, middle, width - border)
    return Region(middle, border, height - middle, width - border)


def crop_boxes(region: Region, *, scales: tuple[float, ...], overlap: float) -> list[Region]:
    """Square crops that cover a region, large ones first.

    `scales` are their sides as shares of the region's short side, `overlap` the share of its side that a crop has in
    common with the next, at least.
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


def crop_dataset(split: str, *, transform: PhotoTransform, seed: int, domain: str = "") -> PhotoDataset:
    """The crops of a split in memory, without captions, of the photos in the order of their names.

    Domain "A" takes the upper half of what the split may show, "B" colour negatives of the lower half.

    Raises:
        FileNotFoundError: If the installed scikit-image holds none of the photos.
    """
    folder = Path(skimage.data.__file__).parent
    files = [folder / name for name in sorted(PHOTOS) if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(
            f"scikit-image holds no photos in {str(folder)!r}; install its wheel or set datamodule=photos and "
            "datamodule.root=DIR"
        )
    scales, overlap = (TRAIN_SCALES, 0.75) if split == "train" else (EVAL_SCALES, 0.5)
    paths, names, crops = [], [], []
    for path in files:
        photo = resize_short_side(decode_image(path, transform.max_pixels), SHORT_SIDE_PX)
        region = split_region(photo.shape[-2], photo.shape[-1], split)
        if domain:
            half = region.height // 2
            region = region._replace(top=region.top + half * (domain == "B"), height=half)
        for box in crop_boxes(region, scales=scales, overlap=overlap):
            crop = View(*box, size_px=(transform.size_px, transform.size_px)).image(photo)
            paths.append(path)
            names.append(f"{path.stem}_{box.top}_{box.left}_{box.height}")
            crops.append(255 - crop if domain == "B" else crop)
    return PhotoDataset(paths, names=names, transform=transform, seed=seed, stored=crops)


@dataclass(kw_only=True, eq=False, repr=False)
class BuiltinPhotosDataModule(StepDataModule):
    """Crops of the colour photos in the installed scikit-image; no file is downloaded.

    The splits show disjoint regions of the same photos, so figures on them say nothing about new photos.
    """

    size_px: int = 64  # side of the square images
    flip_prob: float = 0.5  # of a left-right flip in training
    caption: Literal["none", "folder", "colors", "folder_colors"] = "folder"  # folder = what the photo shows
    caption_drop_colors_prob: float = 0.25  # that a training caption leaves out its colour names
    caption_drop_class_prob: float = 0.25  # that a training caption is its colour names alone

    def __post_init__(self) -> None:
        super().__post_init__()
        self.transform = from_options(PhotoTransform, self)

    def build_dataset(self, split: str) -> PhotoDataset:
        """The crops of a split, decoded into memory; raises as `crop_dataset`."""
        dataset = crop_dataset(split, transform=self.transform, seed=self.seed)
        colors = color_names(dataset) if "colors" in self.caption else [()] * len(dataset)
        dataset.captions = [
            PhotoCaption(PHOTOS[path.name] if "folder" in self.caption else "", names)
            for path, names in zip(dataset.paths, colors, strict=True)
        ]
        return dataset


@dataclass(kw_only=True, eq=False, repr=False)
class BuiltinUnpairedDataModule(StepDataModule):
    """Photos (A) and colour negatives (B) in the splits of `BuiltinPhotosDataModule`; the right translation of x is 1 - x.

    A shows the upper half of what a split may show of each photo and B the lower half, so no pixel is in both.
    """

    size_px: int = 64  # side of the square images
    batch_size: int = 8
    flip_prob: float = 0.5  # of a left-right flip in training, of each image for itself

    def __post_init__(self) -> None:
        super().__post_init__()
        self.transform = from_options(PhotoTransform, self)

    def build_dataset(self, split: str) -> UnpairedDataset:
        """The crops of both domains, decoded into memory; raises as `crop_dataset`."""
        a, b = (
            crop_dataset(split, transform=self.transform, seed=self.seed, domain=domain) for domain in "AB"
        )
        return UnpairedDataset(a, b, seed=self.seed)
