"""The part all step-counted data modules share: loaders, the position in the run, resuming."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from datamodules.keyed_dataset import KeyedDataset
from datamodules.options import check_at_least, check_literals
from datamodules.step_sampler import StepBatchSampler
from datamodules.watched_loader import SkippedSamples, WatchedLoader

_SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",)}


class ResumedLoader(WatchedLoader):
    """A loader that starts where its sampler says; having states keeps Lightning from warning of a lost position."""

    def state_dict(self) -> dict[str, int]:
        return {}  # the position is in the data module's state

    def load_state_dict(self, state_dict: dict[str, int]) -> None: ...


@dataclass(kw_only=True, eq=False, repr=False)
class StepDataModule(LightningDataModule):
    """Training batches as a pure function of (seed, batch number), evaluation in order; subclasses build the splits.

    Attributes:
        train_dataset, val_dataset, test_dataset: The splits, None before `setup`.
        skipped: The count of training samples read and skipped since `train_dataloader`.
    """

    batch_size: int = 16  # samples per process and batch
    num_workers: int = 0  # loader processes; 0 loads in the main process
    seed: int = 0  # of the order and of the augmentation
    val_batch_size: int | None = None  # samples per batch in evaluation; None = batch_size
    timeout_s: float = 300.0  # longest wait for a batch of a worker; 0 waits for ever

    def __post_init__(self) -> None:
        super().__init__()
        check_literals(self)
        check_at_least(1, batch_size=self.batch_size, val_batch_size=self.val_batch_size)
        check_at_least(0, seed=self.seed, num_workers=self.num_workers, timeout_s=self.timeout_s)
        self.train_dataset: KeyedDataset | None = None
        self.val_dataset: KeyedDataset | None = None
        self.test_dataset: KeyedDataset | None = None
        self.skipped = SkippedSamples()
        self._resumed: dict[str, int] | None = None

    def build_dataset(self, split: str) -> KeyedDataset:
        """The data set of "train", "val" or "test"."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Builds the splits that `stage` (fit, validate, test, predict) needs and that are not there yet."""
        for split in _SPLITS_OF_STAGE.get(stage, ("test",)):
            if getattr(self, f"{split}_dataset") is None:
                setattr(self, f"{split}_dataset", self.build_dataset(split))

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the whole run, from the first one that was not consumed yet.

        Raises:
            ValueError: Without trainer.max_steps, or if the run being resumed is beyond it or had other data, batch sizes or
                accumulation.
        """
        trainer, dataset = self.trainer, self.train_dataset
        assert trainer is not None
        assert dataset is not None
        if trainer.max_steps < 1:
            raise ValueError(
                "the order of batches needs the length of the run; set trainer.max_steps above 0"
            )
        if trainer.global_step > trainer.max_steps:  # nothing would be trained
            raise ValueError(
                f"the checkpoint is at step {trainer.global_step}, beyond trainer.max_steps={trainer.max_steps}; set "
                f"trainer.max_steps above {trainer.global_step} to train further"
            )
        sampler = StepBatchSampler(
            len(dataset),
            self.batch_size,
            trainer.max_steps * trainer.accumulate_grad_batches,
            self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            start_batch=self._start_batch(trainer),
        )
        if sampler.start_batch >= sampler.total_batches and trainer.global_step < trainer.max_steps:
            # Lightning would begin one empty epoch after the other, for ever.
            raise ValueError(
                f"the checkpoint has used {sampler.start_batch} batches in {trainer.global_step} steps, but the whole run "
                f"of {trainer.max_steps} steps has {sampler.total_batches}, so none are left; resume with the "
                "trainer.accumulate_grad_batches it was trained with or a larger trainer.max_steps"
            )
        loader = ResumedLoader(dataset, batch_sampler=sampler, **self._loader_options())
        self.skipped = loader.skipped
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """The val split in order; every process reads all of it, so that no sample counts twice or is left out."""
        return self._eval_loader(self.val_dataset)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test split, as the val split."""
        return self._eval_loader(self.test_dataset)

    predict_dataloader = test_dataloader

    def _eval_loader(self, dataset: KeyedDataset | None) -> DataLoader[Any]:
        assert dataset is not None, "setup(stage) comes before the loaders"
        batch_size = self.val_batch_size or self.batch_size
        return WatchedLoader(dataset, batch_size=batch_size, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "timeout": self.timeout_s,
            "pin_memory": torch.cuda.is_available(),
            # Without its own generator a loader draws a seed from the global one, so a resumed run would differ there.
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def state_dict(self) -> dict[str, int]:
        """Position in the order of training batches, stored in Lightning's checkpoint."""
        if self.trainer is None or self.train_dataset is None:
            return {}
        return {"num_batches": _num_processed(self.trainer), **self._order(self.trainer)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Keeps the position for `train_dataloader`, which checks it; to test a checkpoint other data are fine."""
        self._resumed = dict(state_dict)

    def _order(self, trainer: Trainer) -> dict[str, int]:
        """What the order of samples depends on."""
        assert self.train_dataset is not None
        return {
            "seed": self.seed,
            "num_samples": len(self.train_dataset),
            "global_batch_size": self.batch_size * trainer.world_size,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
        }

    def _start_batch(self, trainer: Trainer) -> int:
        # A state that was loaded to test a checkpoint must not move the start of a later fit.
        if not trainer.ckpt_path:
            return _num_processed(trainer)
        if not self._resumed:
            raise ValueError(
                "the checkpoint holds no data position of this kind of datamodule, so its order of samples can't be "
                "continued; resume with the datamodule it was trained with, or start a new run"
            )
        order = self._order(trainer)
        for key, value in self._resumed.items():  # older checkpoints have no note of the accumulation
            if value != order.get(key, value):
                raise ValueError(
                    f"the checkpoint was trained with {key}={value} but this run has {order[key]}, so its order of samples "
                    "can't be continued; resume with the same data, seed, batch size (per process times processes) and "
                    "accumulation, or start a new run"
                )
        return self._resumed["num_batches"]


def _num_processed(trainer: Trainer) -> int:
    # The counter that is right wherever a checkpoint is written: in on_train_batch_end `ready` and `started` equal it
    # but `completed` lags by one, and after an exception within a step `ready` is one ahead.
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)
