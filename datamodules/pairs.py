"""Pictures with their partners: a folder of them, read step by step as photos are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from datamodules.captions import PhotoCaption
from datamodules.folder_datamodule import FolderDataModule
from datamodules.keyed_dataset import Draw, Item, KeyedDataset
from datamodules.options import from_options
from datamodules.pair_files import Pair, PairFiles
from datamodules.view import JointTransform, View

# As pix2pix: images of 286 pixels cut to 256 (Isola et al. 2017, Sec. 6.2).
PAIR_SCALE = (0.9, 1.0)


class PairDataset(KeyedDataset):
    """Targets with their sources and further conditions, moved together.

    Args:
        pairs, names: The files, and the unique name of each pair in batches.
        layout: How the files are read.
        transform: Size, crop, flip and turns of all pictures of a pair.
        seed: Of the augmentation and of the choice among captions.
        stored: Results of `pictures` kept in memory, or None to decode at every access.
    """

    num_draws = 6  # flip, side, top, left, turn, which of several captions
    transform: JointTransform

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        names: Sequence[str],
        layout: PairFiles,
        transform: JointTransform,
        seed: int = 0,
        stored: Sequence[dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__(names, transform=transform, seed=seed)
        self.pairs, self.layout = list(pairs), layout
        self._stored = stored

    def files(self, index: int, epoch: int | None = None) -> list[Path]:
        files = self.pairs[index].files
        order = sorted(files, key=lambda name: self.layout.keys[name] != "image")
        return list(dict.fromkeys(files[name] for name in order))

    def states(self) -> list[str]:
        how = f"{self.layout.columns} {self.layout.keys} {self.layout.class_maps}"
        return [f"{state} {how}" for state in super().states()]

    def pictures(self, index: int) -> dict[str, Tensor]:
        """The pictures by batch key, uint8 (3, H, W), before the sample's view."""
        return self.layout.read(self.pairs[index]) if self._stored is None else self._stored[index]

    def caption(self, index: int, share: float) -> str:
        """The text of a pair; of several the one at a share in [0, 1)."""
        return PhotoCaption(self.pairs[index].text).text(share=share)

    def item(self, index: int, draw: Draw | None) -> Item:
        pictures = self.pictures(index)
        height, width = pictures["image"].shape[-2:]
        crop = None if draw is None else draw.uniform[1:4]
        view = self.transform.view((height, width), crop, flip=self.flips(draw))
        sample: dict[str, Any] = seen(pictures, view, self.layout)
        if draw is not None:
            sample = {key: self.transform.turned(part, draw.uniform[4]) for key, part in sample.items()}
        sample = {key: part.float() / 255.0 for key, part in sample.items()}
        sample["caption"] = self.caption(index, 0.0 if draw is None else float(draw.uniform[5]))
        return cast(Item, sample)


def seen(pictures: dict[str, Tensor], view: View, layout: PairFiles) -> dict[str, Tensor]:
    """The view of pictures by batch key; a map of classes gets no colour between two classes."""
    maps = [layout.keys[name] for name in layout.class_maps]
    return {key: view.mask(part) if key in maps else view.image(part) for key, part in pictures.items()}


@dataclass(kw_only=True, eq=False, repr=False)
class PairsDataModule(FolderDataModule):
    """Targets with their sources and perhaps further conditions; see docs/data.md for the layouts.

    Batches hold `image`, the target, `source`, each further condition under its name, `caption`, `name` and `index`.
    """

    size_px: int = 128  # side of the square images
    conds: Sequence[str] = ()  # further folders or columns that belong to each pair
    columns: Sequence[str] | None = None  # what stands side by side in one picture; None = files of their own
    class_maps: Sequence[str] = ()  # folders or columns whose pictures hold class ids
    reverse: bool = False  # exchange source and target
    crop: Literal["center", "random", "resize"] = "center"  # in training
    scale: Sequence[float] = PAIR_SCALE  # range of the sides of random squares, shares of the short side
    symmetries: bool = False  # one of the eight flips and quarter turns of a square, drawn in training

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layout = from_options(PairFiles, self)
        self.train_transform = from_options(JointTransform, self)
        self.eval_transform = replace(self.train_transform, crop=self.eval_crop)

    def build_dataset(self, split: str) -> PairDataset:
        """The readable pairs of a split; OSError or ValueError if something is missing or does not fit."""
        transform = self.train_transform if split == "train" else self.eval_transform

        def read(pair: Pair) -> dict[str, Tensor] | None:
            """What is to be kept of a pair in memory."""
            self.layout.check(pair)
            if not self.keep and split == "train":
                return None
            pictures = self.layout.read(pair)
            if not self.keep or transform.crop == "random":
                return pictures if self.keep else None
            height, width = pictures["image"].shape[-2:]
            view = transform.view((height, width))
            return {key: part.clone() for key, part in seen(pictures, view, self.layout).items()}

        found = self.readable(self.layout.split(self.folder, split), read, what=f"{split} split")
        return PairDataset(
            [pair for pair, _ in found],
            names=[self.name_of(pair.files["target"]) for pair, _ in found],
            layout=self.layout,
            transform=transform,
            seed=self.seed,
            stored=[kept for _, kept in found if kept is not None] if self.keep else None,
        )
