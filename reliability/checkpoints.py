"""When checkpoints are written: `last` follows the steps alone, `best` follows a metric alone."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from diffusion.choices import check_literal
from reliability import lightning_internals
from reliability.checkpoint_io import check_disk_space, read_checkpoint
from reliability.finite_guard import NonFiniteError
from reliability.step_callback import StepCallback

logger = logging.getLogger(__name__)

Mode = Literal["min", "max"]


class LastCheckpoint(StepCallback, Checkpoint):
    """Writes `last.ckpt` every n optimiser steps, at the end of fit, and when fit is interrupted or fails.

    The one before stays as `previous.ckpt` (see AtomicCheckpointIO). It follows no metric. If a validation is due at
    the same step, the file is written after it, so that a resumed run neither misses nor repeats that validation. After
    an interruption in the middle of an optimiser step or of an accumulation window the weights belong to no step, so
    the earlier file is kept.

    Args:
        every_n_steps: optimiser steps between writes.
        folder: where `last.ckpt` goes; None means `checkpoints` under the trainer's default_root_dir.

    Attributes:
        figures: the metrics by name at the last write, which a checkpoint carries along.
    """

    filename = "last.ckpt"

    def __init__(self, every_n_steps: int = 500, folder: str | Path | None = None) -> None:
        super().__init__(every_n_steps)
        self.folder = folder
        self._saved_step: int | None = None  # None before training
        self._updating = self._save_failed = False
        self._stopped_in: str | None = None
        self._restored = False
        self._validated = 0  # batches of all validations before the one at hand
        self._repeats_from: int | None = None
        self._stale = False
        self.figures: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves nothing before training starts: until then a checkpoint may be restored in part alone."""
        self._saved_step = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the disk before the first step costs anything."""
        self._saved_step = self.batch_start_step = trainer.global_step
        self._updating = self._save_failed = False
        counted = lightning_internals.num_validation_batches(trainer)
        self._validated = counted if self._repeats_from is None else self._repeats_from
        if trainer.is_global_zero:
            # best, last, previous and the one being written, less what is there already
            folder = checkpoint_folder(self.folder, trainer)
            there = sum(path.stat().st_size for path in folder.glob("*.ckpt"))
            needed = _estimated_bytes(pl_module)
            check_disk_space(folder, max(needed, 4 * needed - there))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Mends the loggers' step: as Lightning restores it, it is one too high after some of its save points."""
        super().on_train_batch_start(trainer, pl_module, *_)
        if self._restored:
            lightning_internals.set_logger_step(trainer, trainer.global_step)
            self._restored = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._updating = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Saves if a step was completed and is due."""
        self._updating = False
        if self.is_due(trainer) and not lightning_internals.validation_follows(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the batches of a repeated validation as those of an uninterrupted one."""
        if not _inside_fit(trainer):
            return
        if self._repeats_from is not None:
            lightning_internals.set_num_validation_batches(trainer, self._repeats_from)
            self._repeats_from = None
            self._stale = True  # the file says that this validation is still to do
        self._validated = lightning_internals.num_validation_batches(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if the step before this validation was due."""
        if not _inside_fit(trainer):
            return
        self._validated = lightning_internals.num_validation_batches(trainer)
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the last complete step without hiding the exception that stopped the run."""
        if trainer.state.fn != "fit" or self._saved_step is None or self._save_failed:
            return
        if trainer.world_size > 1 and not isinstance(exception, SIGTERMException):
            return  # the other ranks may still be computing: a collective save would hang
        processed, completed = lightning_internals.num_batches_of_epoch(trainer)
        # An error of a hook after the batch: the step is taken, but Lightning has not counted the batch yet.
        uncounted = processed != completed and self.stepped(trainer)
        if self._updating or uncounted or completed % trainer.accumulate_grad_batches:
            where = trainer.global_step, _path(self, trainer), self._saved_step
            logger.warning("Stopped inside step %d; %s stays at step %d.", *where)
            return
        self._stopped_in = "validation" if trainer.validating else "batch"
        try:
            self._save(trainer)
        except (OSError, NonFiniteError) as error:
            logger.error("%s", error)
        finally:
            self._stopped_in = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the figures so far; Lightning's counters of an interrupted run point to the start of what was stopped."""
        metrics = trainer.callback_metrics
        self.figures |= {k: float(v) for k, v in metrics.items() if isinstance(v, torch.Tensor)}
        checkpoint["figures"] = dict(self.figures)
        if self._stopped_in is not None:
            lightning_internals.rewind_counters(checkpoint, in_validation=self._stopped_in == "validation")

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes over the figures: a run killed after its last step would end without any."""
        self.figures = dict(checkpoint.get("figures", {}))

    def state_dict(self) -> dict[str, Any]:
        """From where an interrupted validation counts its batches."""
        return {"repeats_from": self._validated if self._stopped_in == "validation" else self._repeats_from}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._repeats_from = state_dict.get("repeats_from")  # older checkpoints lack it
        self._restored = True

    def _save(self, trainer: Trainer) -> None:
        if (trainer.global_step == self._saved_step and not self._stale) or trainer.fast_dev_run:
            return
        self._save_failed = True
        trainer.save_checkpoint(_path(self, trainer), weights_only=False)
        self._save_failed = self._stale = False
        self._saved_step = trainer.global_step


class BestCheckpoint(Checkpoint):
    """Writes `best.ckpt` after a validation that improved the monitored value.

    The best value so far is the one inside the existing `best.ckpt` of the folder, so a resumed run can neither
    replace a better file by a worse one nor wait for the best value of another folder.

    Args:
        monitor: name of a metric logged in validation.
        mode: "min" if lower is better, else "max".
        folder: where `best.ckpt` goes; None means `checkpoints` under the trainer's default_root_dir.

    Raises:
        ValueError: if mode is unknown, or after a validation that did not log `monitor`.
    """

    filename = "best.ckpt"

    def __init__(
        self, monitor: str = "val/loss", mode: Mode = "min", folder: str | Path | None = None
    ) -> None:
        check_literal("callbacks.best.mode", mode, Mode)
        self.monitor = monitor
        self.mode = mode
        self.folder = folder
        self.best_value: float | None = None
        self.best_step: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the value to beat from the folder's own file."""
        self.best_value = self.best_step = None
        path = _path(self, trainer)
        if not path.is_file():
            return
        try:
            state = read_checkpoint(path)["callbacks"][self.state_key]
        except (ValueError, KeyError) as error:  # it must not stop a run that will write a better one
            logger.warning("The earlier best checkpoint will be replaced: %s", error)
            return
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode):
            self.best_value, self.best_step = state["best_value"], state["best_step"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if the monitored value is finite and better than before."""
        if not _inside_fit(trainer) or trainer.fast_dev_run:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ValueError(
                f"BestCheckpoint monitors {self.monitor!r}, which the validation did not log; it logged "
                f"{sorted(metrics)}; set callbacks.best.monitor to one of them."
            )
        value = float(metrics[self.monitor])
        if trainer.strategy.broadcast(self._improves(value)):
            self.best_value, self.best_step = value, trainer.global_step
            trainer.save_checkpoint(_path(self, trainer), weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("monitor", "mode", "best_value", "best_step")}

    def _improves(self, value: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        return math.isfinite(value) and (self.best_value is None or sign * value < sign * self.best_value)


def checkpoint_folder(folder: str | Path | None, trainer: Trainer) -> Path:
    """`folder`, or `checkpoints` under the trainer's default_root_dir."""
    return Path(folder) if folder is not None else Path(trainer.default_root_dir) / "checkpoints"


def _path(callback: LastCheckpoint | BestCheckpoint, trainer: Trainer) -> Path:
    return checkpoint_folder(callback.folder, trainer) / callback.filename


def _inside_fit(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _estimated_bytes(module: LightningModule) -> int:
    """Weights, two optimiser moments and the average of each trainable parameter, plus its buffers."""
    parameters = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in module.buffers())
    return 4 * parameters + buffers
