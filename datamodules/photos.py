"""Any folder of photos, read step by step: the batch of a step is a pure function of the seed and its number."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from color.names import strip_grey_phrases
from datamodules.annotations import chroma, color_names
from datamodules.captions import PhotoCaption, Subject, class_captions, metadata_captions
from datamodules.folder_datamodule import FolderDataModule
from datamodules.image_files import split_images
from datamodules.options import from_options
from datamodules.photo_dataset import PhotoDataset, PhotoTransform

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False, repr=False)
class PhotosDataModule(FolderDataModule):
    """Photos of a folder with captions; see docs/data.md for the layouts. Batches hold `image`, `caption`, `name`, `index`."""

    size_px: int = 64  # side of the square images
    batch_size: int = 64
    crop: Literal["center", "random"] = "center"  # in training
    caption: Literal["none", "metadata", "folder", "colors", "folder_colors", "blip"] = "none"
    caption_template: str = "a photo of {a_class}"  # for a class folder, with {a_class} or {class}
    caption_drop_colors_prob: float = 0.25  # that a training caption leaves out its colour names
    caption_drop_class_prob: float = 0.25  # that a training caption is its colour names alone
    strip_grey_phrases: bool = False  # remove phrases such as "black and white photo of" from the captions
    near_grey_min_chroma: float | None = None  # leave out training photos of a smaller mean CIELAB chroma
    blip: str = "Salesforce/blip-image-captioning-base"  # hub id or local folder, for caption="blip"
    cache_dir: str | None = None  # keeps colour names, chroma and BLIP captions; None = anew in every run

    def __post_init__(self) -> None:
        super().__post_init__()
        self.train_transform = from_options(PhotoTransform, self)
        self.eval_transform = replace(self.train_transform, crop=self.eval_crop)

    def build_dataset(self, split: str) -> PhotoDataset:
        """The readable photos of a split with their captions; OSError or ValueError if there is nothing to use."""
        dataset = self.photos(
            split_images(self.folder, split),
            split,
            transform=self.train_transform if split == "train" else self.eval_transform,
        )
        if split == "train" and self.near_grey_min_chroma is not None:
            dataset = self._without_near_grey(dataset, self.near_grey_min_chroma)
        dataset.captions = self._captions(dataset)
        return dataset

    def _without_near_grey(self, dataset: PhotoDataset, min_chroma: float) -> PhotoDataset:
        values = chroma(dataset, cache_dir=self.cache_dir)
        kept = [index for index, value in enumerate(values) if value >= min_chroma]
        num_left_out = len(dataset) - len(kept)
        log.info(
            "left out %d of %d photos with a mean chroma below %g", num_left_out, len(dataset), min_chroma
        )
        if not kept:
            raise ValueError(
                f"every training photo of {str(self.folder)!r} has a mean chroma below {min_chroma:g} (the "
                f"largest is {max(values):.1f}); lower datamodule.near_grey_min_chroma"
            )
        return dataset.subset(kept)

    def _captions(self, dataset: PhotoDataset) -> list[PhotoCaption]:
        subjects: Sequence[Subject] = [""] * len(dataset)
        if self.caption == "metadata":
            subjects = metadata_captions(dataset.paths, root=self.folder)
        elif self.caption == "blip":
            from datamodules.blip import blip_captions

            subjects = blip_captions(dataset, model=self.blip, cache_dir=self.cache_dir)
        elif "folder" in self.caption:
            subjects = class_captions(dataset.paths, root=self.folder, template=self.caption_template)
        if self.strip_grey_phrases:
            subjects = [
                strip_grey_phrases(subject)
                if isinstance(subject, str)
                else tuple(map(strip_grey_phrases, subject))
                for subject in subjects
            ]
        use_colors = "colors" in self.caption
        colors = color_names(dataset, cache_dir=self.cache_dir) if use_colors else [()] * len(dataset)
        return [PhotoCaption(subject, names) for subject, names in zip(subjects, colors, strict=True)]
