"""Folders of two domains without pairs, as CycleGAN lays them out, read step by step as photos are."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datamodules.folder_datamodule import FolderDataModule
from datamodules.image_files import hashed_split, list_images
from datamodules.keyed_dataset import Draw, Item, KeyedDataset
from datamodules.options import from_options
from datamodules.photo_dataset import PhotoDataset, PhotoTransform
from datamodules.step_sampler import epoch_order

# Keeps the order of domain B apart from that of A and from the augmentation.
ORDER_OF_B = (0, 1)


class UnpairedDataset(KeyedDataset):
    """An image of each domain; in training the partner in B is another one in every epoch, a function of the seed.

    It is as long as the larger domain. Images of the smaller one come again: in training each about equally often, in
    evaluation from its first on, under the same name. A gives the size, the crops and the names.
    """

    num_draws = 8  # flip, side, top and left of A, then of B

    def __init__(self, a: PhotoDataset, b: PhotoDataset, *, seed: int = 0) -> None:
        length = max(len(a), len(b))
        super().__init__([a.names[n % len(a)] for n in range(length)], transform=a.transform, seed=seed)
        self.a, self.b = a, b

    @property
    def deterministic(self) -> bool:
        return False  # a latent cache keeps one image of an index

    def partner(self, index: int, epoch: int | None) -> int:
        """Position in B of what stands beside `index`; None = evaluation, in order."""
        if epoch is not None:
            index = int(epoch_order(len(self), seed=self.seed, epoch=epoch, stream=ORDER_OF_B)[index])
        return index % len(self.b)

    def files(self, index: int, epoch: int | None = None) -> list[Path]:
        return [self.a.paths[index % len(self.a)], self.b.paths[self.partner(index, epoch)]]

    def item(self, index: int, draw: Draw | None) -> Item:
        partner = self.partner(index, None if draw is None else draw.epoch)
        flip_b, crop_a, crop_b = False, None, None
        if draw is not None:
            flip_b = bool(draw.uniform[4] < self.transform.flip_prob)
            crop_a, crop_b = draw.uniform[1:4], draw.uniform[5:8]
        return Item(
            image_a=self.a.photo(index % len(self.a), crop_a, flip=self.flips(draw)),
            image_b=self.b.photo(partner, crop_b, flip=flip_b),
            name_b=self.b.names[partner],
        )


@dataclass(kw_only=True, eq=False, repr=False)
class UnpairedDataModule(FolderDataModule):
    """Photos of two domains, trainA, trainB and perhaps valA, valB, testA, testB in `root`; see docs/data.md.

    Batches hold `image_a`, `image_b`, `name`, `name_b` and `index`. Each image is flipped for itself.
    """

    size_px: int = 128  # side of the square images
    batch_size: int = 8
    crop: Literal["center", "random"] = "center"  # in training

    def __post_init__(self) -> None:
        super().__post_init__()
        self.train_transform = from_options(PhotoTransform, self)
        self.eval_transform = replace(self.train_transform, crop=self.eval_crop)

    def build_dataset(self, split: str) -> UnpairedDataset:
        """The readable photos of both domains; OSError or ValueError if one has none."""
        a, b = (
            self.photos(
                domain_images(self.folder, split, domain),
                split,
                transform=self.train_transform if split == "train" else self.eval_transform,
                domain=f" of domain {domain}",
            )
            for domain in "AB"
        )
        return UnpairedDataset(a, b, seed=self.seed)


def domain_images(root: Path, split: str, domain: str) -> list[Path]:
    """Image files of one domain: its folder, or where val or test has none, by hash a share of the train folder."""
    own = [name for name in ("val", "test") if (root / f"{name}{domain}").is_dir()]
    if split in own:
        return list_images(root / f"{split}{domain}")
    folder = root / f"train{domain}"
    if root.is_dir() and not folder.is_dir():
        raise FileNotFoundError(
            f"{str(root)!r} has no folder train{domain}/; datamodule=unpaired takes trainA/, trainB/ and perhaps valA/, "
            "valB/, testA/ and testB/ in datamodule.root"
        )
    splits = ("train", *(name for name in ("val", "test") if name not in own))
    return hashed_split(list_images(folder), root=folder, split=split, splits=splits)
