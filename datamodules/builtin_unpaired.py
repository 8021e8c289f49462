"""Two domains made from the built-in photos: crops, and the colour negatives of other crops."""

from dataclasses import dataclass

from datamodules.builtin import crop_dataset
from datamodules.photo_dataset import PhotoTransform
from datamodules.step_datamodule import StepDataModule
from datamodules.unpaired import UnpairedDataset


@dataclass(kw_only=True, eq=False, repr=False)
class BuiltinUnpairedDataModule(StepDataModule):
    """Photos (A) and colour negatives (B); no file is downloaded, and the right translation of x is known: 1 - x.

    A shows the upper half of what a split may show of each photo and B the lower half, so no pixel is in both. Splits
    are those of `BuiltinPhotosDataModule`, batches those of `UnpairedDataModule`.
    """

    size_px: int = 64  # side of the square images
    batch_size: int = 8
    flip_prob: float = 0.5  # of a left-right flip in training, of each image for itself

    def __post_init__(self) -> None:
        super().__post_init__()
        self.transform = PhotoTransform(self.size_px, flip_prob=self.flip_prob)

    def build_dataset(self, split: str) -> UnpairedDataset:
        """The crops of both domains, decoded into memory; raises as `crop_dataset`."""
        a, b = (
            crop_dataset(split, transform=self.transform, seed=self.seed, domain=domain) for domain in "AB"
        )
        return UnpairedDataset(a, b, seed=self.seed)
