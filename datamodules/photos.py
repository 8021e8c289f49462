"""Any folder of photos, read step by step: the batch of a step is a pure function of the seed and its number."""

import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from datamodules.captions import (
    CAPTIONS,
    PhotoCaption,
    caption_parts,
    class_caption,
    class_folder,
    metadata_captions,
)
from datamodules.image_files import split_folders, split_images
from datamodules.photo_dataset import PhotoDataset, PhotoTransform
from datamodules.readable import readable
from datamodules.step_datamodule import StepDataModule, check_choice

log = logging.getLogger(__name__)


class PhotosDataModule(StepDataModule):
    """Photos of a folder with captions; see docs/data.md for the layouts.

    Batches hold `image` (B,3,H,W) float32 in [0,1], `caption` and `name` (lists of str) and `index` (B,) int64.
    Files that cannot be read are skipped with a warning.

    Args:
        root: Folder of images.
        size_px: Side of the square images.
        batch_size: Samples per process and batch.
        num_workers: Loader processes; 0 loads in the main process.
        seed: Seed of the order and of the augmentation.
        crop: "center" or "random", in training.
        eval_crop: "center" or "resize" (the whole photo squeezed to a square), in evaluation.
        flip_prob: Probability of a left-right flip in training.
        caption: One of `CAPTIONS`.
        caption_template: Text for a class folder, with {a_class} or {class}.
        caption_drop_colors_prob: Probability that a training caption leaves out its colour names.
        caption_drop_class_prob: Probability that a training caption is its colour names alone.
        strip_grey_phrases: Remove phrases such as "black and white photo of" from the captions.
        near_grey_min_chroma: Leave training photos out whose mean CIELAB chroma is below this; None keeps all.
        blip: Hub id or local folder of a BLIP captioner, for caption="blip".
        image_cache: "none" decodes at every access, "memory" once.
        cache_dir: Folder where colour names, chroma and BLIP captions are kept; None computes them in every run.
        max_pixels: Files with more pixels are skipped before decoding.
        max_unreadable_share: Largest share of a split's files that may be skipped before training.
        val_batch_size: Samples per batch in evaluation; None = batch_size.
        timeout_s: Longest wait for a batch of a worker; 0 waits for ever.

    Raises:
        ValueError: For an unknown option value.
    """

    def __init__(
        self,
        *,
        root: str,
        size_px: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        crop: str = "center",
        eval_crop: str = "center",
        flip_prob: float = 0.5,
        caption: str = "none",
        caption_template: str = "a photo of {a_class}",
        caption_drop_colors_prob: float = 0.25,
        caption_drop_class_prob: float = 0.25,
        strip_grey_phrases: bool = False,
        near_grey_min_chroma: float | None = None,
        blip: str = "Salesforce/blip-image-captioning-base",
        image_cache: str = "none",
        cache_dir: str | None = None,
        max_pixels: int = 64_000_000,
        max_unreadable_share: float = 0.5,
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
        check_choice("crop", crop, ("center", "random"))
        check_choice("eval_crop", eval_crop, ("center", "resize"))
        check_choice("caption", caption, CAPTIONS)
        check_choice("image_cache", image_cache, ("none", "memory"))
        self.root, self.caption, self.caption_template = Path(root), caption, caption_template
        self.strip_grey_phrases, self.near_grey_min_chroma = strip_grey_phrases, near_grey_min_chroma
        if max_pixels < 1:
            raise ValueError(f"datamodule.max_pixels is {max_pixels}; expected at least 1")
        if not 0.0 <= max_unreadable_share <= 1.0:
            raise ValueError(
                f"datamodule.max_unreadable_share is {max_unreadable_share}; expected a share in [0, 1]"
            )
        self.blip, self.image_cache, self.cache_dir = blip, image_cache, cache_dir
        self.max_unreadable_share = max_unreadable_share
        self.eval_transform = PhotoTransform(size_px, crop=eval_crop, max_pixels=max_pixels)
        self.train_transform = PhotoTransform(
            size_px,
            crop=crop,
            flip_prob=flip_prob,
            max_pixels=max_pixels,
            caption_drop_colors_prob=caption_drop_colors_prob,
            caption_drop_class_prob=caption_drop_class_prob,
        )

    def build_dataset(self, split: str) -> PhotoDataset:
        """The readable photos of a split with their captions.

        Raises:
            FileNotFoundError, NotADirectoryError, ValueError: If there is no folder, image or caption to use.
        """
        transform = self.train_transform if split == "train" else self.eval_transform
        paths = split_images(self.root, split)
        if not paths:
            raise ValueError(
                f"{str(self.root)!r} has no {split} split; add a folder {split}/ with images to it"
            )
        keep = self.image_cache == "memory"
        found = readable(
            paths,
            transform=transform,
            keep=keep,
            decode=split != "train",
            max_share=self.max_unreadable_share,
        )
        if not found:
            raise ValueError(
                f"none of the {len(paths)} images in the {split} split of {str(self.root)!r} can be read; replace them or "
                "set datamodule.root to another folder (the log lists each file with its reason)"
            )
        dataset = PhotoDataset(
            [path for path, _ in found],
            names=[printable(path.relative_to(self.root)) for path, _ in found],
            transform=transform,
            seed=self.seed,
            stored=stacked([image for _, image in found if image is not None]) if keep else None,
        )
        if split == "train" and self.near_grey_min_chroma is not None:
            dataset = self._without_near_grey(dataset, self.near_grey_min_chroma)
        dataset.captions = self._captions(dataset)
        return dataset

    def _without_near_grey(self, dataset: PhotoDataset, min_chroma: float) -> PhotoDataset:
        from datamodules.annotations import chroma

        values = chroma(dataset, cache_dir=self.cache_dir)
        kept = [index for index, value in enumerate(values) if value >= min_chroma]
        log.info(
            "left out %d of %d photos with a mean chroma below %g",
            len(dataset) - len(kept),
            len(dataset),
            min_chroma,
        )
        if not kept:
            raise ValueError(
                f"every training photo of {str(self.root)!r} has a mean chroma below {min_chroma:g} (the "
                f"largest is {max(values):.1f}); lower datamodule.near_grey_min_chroma"
            )
        return dataset.subset(kept)

    def _captions(self, dataset: PhotoDataset) -> list[PhotoCaption]:
        subjects = [""] * len(dataset)
        colors: list[tuple[str, ...]] = [()] * len(dataset)
        use_folders, use_colors = caption_parts(self.caption)
        if self.caption == "metadata":
            subjects = metadata_captions(dataset.paths, root=self.root)
        elif self.caption == "blip":
            from datamodules.blip import blip_captions

            subjects = blip_captions(dataset, model=self.blip, cache_dir=self.cache_dir)
        elif use_folders:
            subjects = self._class_captions(dataset)
        if self.strip_grey_phrases:
            from color.names import strip_grey_phrases

            subjects = [strip_grey_phrases(subject) for subject in subjects]
        if use_colors:
            from datamodules.annotations import color_names

            colors = color_names(dataset, cache_dir=self.cache_dir)
        return [PhotoCaption(subject, names) for subject, names in zip(subjects, colors, strict=True)]

    def _class_captions(self, dataset: PhotoDataset) -> list[str]:
        splits = split_folders(self.root)
        folders = [class_folder(path, root=self.root, splits=splits) for path in dataset.paths]
        if not any(folders):
            raise ValueError(
                f"datamodule.caption={self.caption} takes captions from class folders, but the images of "
                f"{str(self.root)!r} lie in none; sort them into folders or set datamodule.caption=colors or none"
            )
        return [class_caption(folder, template=self.caption_template) for folder in folders]


def printable(path: Path) -> str:
    """The path as text that any log can take: bytes that are no UTF-8 become escapes.

    Example:
        >>> printable(Path("a/b.png"))
        'a/b.png'
    """
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def stacked(images: list[Tensor]) -> Tensor | list[Tensor]:
    """One tensor if all shapes agree: thousands of small ones cost more memory and slow down forked workers."""
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images
