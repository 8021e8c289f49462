"""Drawn pictures with their class maps: pairs that are always there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from color.classes import painted
from datamodules.builtin_blobs import DRAWING_VERSION, draw_blobs
from datamodules.image_files import SPLITS
from datamodules.options import check_at_least, from_options
from datamodules.pair_files import PairFiles
from datamodules.pairs import PairDataset
from datamodules.step_datamodule import StepDataModule
from datamodules.view import JointTransform


class DrawnPairDataset(PairDataset):
    """Blobs and their class maps by position, drawn at every access; `key` names the data set."""

    def __init__(
        self,
        num_images: int,
        *,
        key: Sequence[int],
        num_classes: int,
        layout: PairFiles,
        transform: JointTransform,
        seed: int = 0,
    ) -> None:
        names = [f"pair_{number}" for number in range(num_images)]
        super().__init__([], names=names, layout=layout, transform=transform, seed=seed)
        self.key, self.num_classes = tuple(key), num_classes

    def files(self, index: int, epoch: int | None = None) -> list[Path]:
        return [Path(self.names[index])]

    def states(self) -> list[str]:
        return [f"{DRAWING_VERSION} {self.key} {self.num_classes} {self.layout.reverse}"] * len(self)

    def pictures(self, index: int) -> dict[str, Tensor]:
        assert self.transform.size_px is not None
        image, masks = draw_blobs(
            *self.key, index, size_px=self.transform.size_px, num_classes=self.num_classes, num_raters=1
        )
        drawn = {
            "target": torch.from_numpy(image).permute(2, 0, 1),
            "source": painted(torch.from_numpy(masks[0])),
        }
        return {self.layout.keys[name]: picture for name, picture in drawn.items()}

    def caption(self, index: int, share: float) -> str:
        return ""


@dataclass(kw_only=True, eq=False, repr=False)
class BuiltinPairsDataModule(StepDataModule):
    """Class maps of blobs (source) and pictures of them on a shaded, noisy ground (target); no file is needed.

    Batches are those of `PairsDataModule`.
    """

    size_px: int = 64  # side of the square images
    data_seed: int = 0  # of the images, so that trainings of different seeds see the same ones
    num_images: int = 512  # in training; val and test have an eighth of it each
    num_classes: int = 4  # class ids, with the background
    reverse: bool = False  # exchange source and target: from pictures to class maps
    flip_prob: float = 0.5  # of a left-right flip in training

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, data_seed=self.data_seed)
        check_at_least(1, num_images=self.num_images)
        if not 2 <= self.num_classes <= 256:
            raise ValueError(
                f"datamodule.num_classes is {self.num_classes}; expected 2 to 256, with the background"
            )
        self.layout = PairFiles(class_maps=("source",), reverse=self.reverse)
        self.transform = from_options(JointTransform, self)

    def build_dataset(self, split: str) -> DrawnPairDataset:
        """The pairs of a split; no two splits share one."""
        return DrawnPairDataset(
            self.num_images if split == "train" else -(-self.num_images // 8),
            key=(self.data_seed, SPLITS.index(split)),
            num_classes=self.num_classes,
            layout=self.layout,
            transform=self.transform,
            seed=self.seed,
        )
