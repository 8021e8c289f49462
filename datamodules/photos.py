"""Any folder of photos, read step by step: the batch of a step is a pure function of the seed and its number."""

import logging
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.captions import CAPTIONS, PhotoCaption, class_caption, metadata_caption
from datamodules.image_files import split_images
from datamodules.photo_dataset import PhotoDataset, PhotoItem, PhotoTransform, readable
from datamodules.step_sampler import StepBatchSampler

log = logging.getLogger(__name__)


class PhotosDataModule(LightningDataModule):
    """Photos of a folder with captions; see docs/data.md for the layouts.

    Batches hold `image` (B,3,H,W) float32 in [0,1], `caption` and `name` (lists of str) and `index` (B,) int64.

    Args:
        root: Folder of images.
        size_px: Side of the square images.
        batch_size: Samples per process and batch.
        num_workers: Loader processes; 0 loads in the main process.
        seed: Seed of the order and of the augmentation.
        crop: "center" or "random"; evaluation always takes the centre.
        flip_prob: Probability of a left-right flip in training.
        caption: One of `CAPTIONS`.
        caption_template: Text for a class folder, with {a_class} or {class}.
        image_cache: "none" decodes at every access, "memory" once.
        max_pixels: Files with more pixels are skipped before decoding.
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
        flip_prob: float = 0.5,
        caption: str = "none",
        caption_template: str = "a photo of {a_class}",
        image_cache: str = "none",
        max_pixels: int = 64_000_000,
        val_batch_size: int | None = None,
        timeout_s: float = 0.0,
    ) -> None:
        super().__init__()
        _check_choice("crop", crop, ("center", "random"))
        _check_choice("caption", caption, CAPTIONS)
        _check_choice("image_cache", image_cache, ("none", "memory"))
        self.root, self.size_px, self.batch_size, self.num_workers = root, size_px, batch_size, num_workers
        self.seed, self.caption, self.caption_template = seed, caption, caption_template
        self.image_cache, self.timeout_s = image_cache, timeout_s
        self.val_batch_size = batch_size if val_batch_size is None else val_batch_size
        self.train_transform = PhotoTransform(size_px, crop=crop, flip_prob=flip_prob, max_pixels=max_pixels)
        self.eval_transform = PhotoTransform(size_px, max_pixels=max_pixels)
        self.train_dataset: PhotoDataset | None = None
        self.val_dataset: PhotoDataset | None = None
        self.test_dataset: PhotoDataset | None = None
        self._resumed: dict[str, int] | None = None

    def setup(self, stage: str) -> None:
        """Lists and checks the files of the splits that `stage` needs; what is there already stays.

        Raises:
            FileNotFoundError, NotADirectoryError, ValueError: If a needed split has no readable image.
        """
        splits = split_images(Path(self.root))
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            if getattr(self, f"{split}_dataset") is None:
                setattr(self, f"{split}_dataset", self._dataset(split, splits[split]))

    def _dataset(self, split: str, paths: list[Path]) -> PhotoDataset:
        transform = self.train_transform if split == "train" else self.eval_transform
        keep = self.image_cache == "memory"
        found = readable(paths, transform=transform, keep=keep)
        if not found:
            raise ValueError(
                f"no readable image is left in the {split} split of {self.root!r} ({len(paths)} files tried); "
                "add images or set datamodule.root"
            )
        root = Path(self.root)
        stored = [image for _, image in found if image is not None]
        return PhotoDataset(
            [path for path, _ in found],
            names=[path.relative_to(root).as_posix() for path, _ in found],
            captions=self._captions([path for path, _ in found]),
            transform=transform,
            seed=self.seed,
            stored=_stacked(stored) if keep else None,
        )

    def _captions(self, paths: list[Path]) -> list[PhotoCaption]:
        root, tables = Path(self.root), {}
        if self.caption == "metadata":
            return [PhotoCaption(metadata_caption(path, root, tables=tables)) for path in paths]
        if self.caption == "folder":
            return [PhotoCaption(self._class_caption(path, root)) for path in paths]
        return [PhotoCaption() for _ in paths]

    def _class_caption(self, path: Path, root: Path) -> str:
        folders = path.relative_to(root).parts[:-1]
        if folders and folders[0] in ("train", "val", "test"):
            folders = folders[1:]
        return class_caption(folders[-1], template=self.caption_template) if folders else ""

    def train_dataloader(self) -> DataLoader[PhotoItem]:
        """Batches of the whole run, from the first one that was not consumed yet.

        Raises:
            ValueError: Without trainer.max_steps, or if the run being resumed had other data or batch sizes.
        """
        trainer, dataset = self.trainer, self.train_dataset
        if trainer is None or trainer.max_steps < 1:
            raise ValueError(
                "the order of training batches needs the length of the run; set trainer.max_steps above 0"
            )
        sampler = StepBatchSampler(
            len(dataset),
            self.batch_size,
            trainer.max_steps * trainer.accumulate_grad_batches,
            self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            start_batch=self._start_batch(),
        )
        return DataLoader(dataset, batch_sampler=sampler, **self._loader_options())

    def val_dataloader(self) -> DataLoader[PhotoItem]:
        """The val split in order; every process reads all of it."""
        return self._eval_loader(self.val_dataset)

    def test_dataloader(self) -> DataLoader[PhotoItem]:
        """The test split in order; every process reads all of it."""
        return self._eval_loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader[PhotoItem]:
        """The test split in order; every process reads all of it."""
        return self._eval_loader(self.test_dataset)

    def _eval_loader(self, dataset: PhotoDataset) -> DataLoader[PhotoItem]:
        return DataLoader(dataset, batch_size=self.val_batch_size, shuffle=False, **self._loader_options())

    def _loader_options(self) -> dict[str, object]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "timeout": self.timeout_s if self.num_workers > 0 else 0.0,
            "pin_memory": torch.cuda.is_available(),
        }

    def state_dict(self) -> dict[str, int]:
        """Position in the order of training batches: plain ints, stored in Lightning's checkpoint.

        `processed` is the counter that is right wherever a checkpoint is written: in on_train_batch_end `ready` and
        `started` equal it but `completed` still lags by one, and after an exception within a step `ready` is one ahead.
        """
        if self.trainer is None or self.train_dataset is None:
            return {}
        return {
            "num_batches": int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed),
            **self._order(),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Keeps the position for the next `train_dataloader`, which checks that data and batch size are the same."""
        self._resumed = dict(state_dict)

    def _order(self) -> dict[str, int]:
        """What the order of samples depends on."""
        return {
            "seed": self.seed,
            "num_samples": len(self.train_dataset),
            "global_batch_size": self.batch_size * self.trainer.world_size,
        }

    def _start_batch(self) -> int:
        if not self._resumed:
            return 0
        for key, value in self._order().items():
            if self._resumed[key] != value:
                raise ValueError(
                    f"the checkpoint was trained with {key}={self._resumed[key]} but this run has {value}, so its order of "
                    "samples can't be continued; resume with the same data, seed and batch size, or start a new run"
                )
        return self._resumed["num_batches"]


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"datamodule.{key} is {value!r}; expected one of {', '.join(allowed)}")


def _stacked(images: list[Tensor]) -> Tensor | list[Tensor]:
    """One tensor if all shapes agree: thousands of small ones cost more memory and slow down forked workers."""
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images
