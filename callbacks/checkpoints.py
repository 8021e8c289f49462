"""When checkpoints are written: `last` follows the steps alone, `best` follows a metric alone."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.checkpoint_io import AtomicCheckpointIO, check_disk_space, read_checkpoint
from callbacks.finite_guard import NonFiniteError

__all__ = ["AtomicCheckpointIO", "BestCheckpoint", "LastCheckpoint", "check_disk_space", "read_checkpoint"]

logger = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every n optimiser steps, at the end of fit, and when fit is interrupted or fails.

    The one before stays as `previous.ckpt` (see AtomicCheckpointIO). It follows no metric. If a validation is due at the same step, the file is written after it, so that a resumed
    run neither misses nor repeats that validation. After an interruption in the middle of an optimiser step or of an
    accumulation window the weights belong to no step, so the earlier file is kept.

    Args:
        every_n_steps: optimiser steps between writes.
        folder: where `last.ckpt` goes; None means `checkpoints` under the trainer's default_root_dir.

    Attributes:
        figures: the metrics by name at the last write, which a checkpoint carries along.

    Raises:
        ValueError: if every_n_steps is below 1.
    """

    filename = "last.ckpt"

    def __init__(self, every_n_steps: int = 500, folder: str | Path | None = None) -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"LastCheckpoint every_n_steps is {every_n_steps}, expected at least 1; "
                "set callbacks.last.every_n_steps=500."
            )
        self.every_n_steps = every_n_steps
        self.folder = folder
        self._saved_step = 0
        self._started = False
        self._batch_start_step = 0
        self._updating = False
        self._save_failed = False
        self._stopped_in: str | None = None
        self._logger_step = 0
        self._restored = False
        self._validated = 0  # batches of all validations before the one at hand
        self._repeats_from: int | None = None
        self._stale = False
        self.figures: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves nothing before training starts: until then a checkpoint may be restored in part alone."""
        self._started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the disk before the first step costs anything."""
        self._saved_step = self._batch_start_step = trainer.global_step
        self._started = True
        self._updating = self._save_failed = False
        counted = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.completed
        self._validated = counted if self._repeats_from is None else self._repeats_from
        if trainer.is_global_zero:
            # best, last, previous and the one being written, less what is there already
            folder = _folder(self.folder, trainer)
            there = sum(path.stat().st_size for path in folder.glob("*.ckpt"))
            needed = _estimated_bytes(pl_module)
            check_disk_space(folder, max(needed, 4 * needed - there))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remembers the step, to see at the end whether this batch completed one."""
        self._batch_start_step = trainer.global_step
        if self._restored:  # Lightning's own restored value is one too high after some of its save points
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._logger_step
            self._restored = False

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Marks the weights as in motion until the end of the batch."""
        self._updating = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if a step was completed and is due."""
        self._updating = False
        stepped = trainer.global_step != self._batch_start_step
        self._logger_step = trainer.fit_loop.epoch_loop._batches_that_stepped + (
            not trainer.fit_loop._should_accumulate()
        )
        if stepped and trainer.global_step % self.every_n_steps == 0 and not _validation_follows(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the batches of a repeated validation as those of an uninterrupted one."""
        if not _inside_fit(trainer):
            return
        total = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        if self._repeats_from is not None:
            total.ready = total.started = total.processed = total.completed = self._repeats_from
            self._repeats_from = None
            self._stale = True  # the file says that this validation is still to do
        self._validated = total.completed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if the step before this validation was due."""
        if _inside_fit(trainer):
            self._validated = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.completed
        if _inside_fit(trainer) and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the final step."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the last complete step without hiding the exception that stopped the run."""
        if trainer.state.fn != "fit" or not self._started or self._save_failed:
            return
        if trainer.world_size > 1 and not isinstance(exception, SIGTERMException):
            return  # the other ranks may still be computing: a collective save would hang
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        # An error of a hook after the batch: the step is taken, but Lightning has not counted the batch yet.
        uncounted = progress.processed != progress.completed and trainer.global_step != self._batch_start_step
        if self._updating or uncounted or progress.completed % trainer.accumulate_grad_batches:
            logger.warning("Stopped inside step %d; %s stays at step %d.", *self._where(trainer))
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
            _rewind_loops(checkpoint["loops"]["fit_loop"], in_validation=self._stopped_in == "validation")

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes over the figures: a run killed after its last step would end without any."""
        self.figures = dict(checkpoint.get("figures", {}))

    def state_dict(self) -> dict[str, Any]:
        """The step under which Lightning's loggers file the next batch, and where an interrupted validation counts from."""
        repeats_from = self._validated if self._stopped_in == "validation" else self._repeats_from
        return {"logger_step": self._logger_step, "repeats_from": repeats_from}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the logger's step, which the first batch sets, and the count of the validation to repeat."""
        self._logger_step = int(state_dict["logger_step"])
        self._repeats_from = state_dict.get("repeats_from")
        self._restored = True

    def _where(self, trainer: Trainer) -> tuple[int, Path, int]:
        return trainer.global_step, _folder(self.folder, trainer) / self.filename, self._saved_step

    def _save(self, trainer: Trainer) -> None:
        if (trainer.global_step == self._saved_step and not self._stale) or trainer.fast_dev_run:
            return
        self._save_failed = True
        trainer.save_checkpoint(_folder(self.folder, trainer) / self.filename, weights_only=False)
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
        self, monitor: str = "val/loss", mode: str = "min", folder: str | Path | None = None
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(
                f"BestCheckpoint mode is {mode!r}, expected min or max; set callbacks.best.mode=min."
            )
        self.monitor = monitor
        self.mode = mode
        self.folder = folder
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.best_model_path = ""  # Lightning reads this for ckpt_path="best"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the value to beat from the folder's own file."""
        self.best_value = self.best_step = None
        path = _folder(self.folder, trainer) / self.filename
        if not path.is_file():
            return
        try:
            state = read_checkpoint(path)["callbacks"][self.state_key]
        except (ValueError, KeyError) as error:  # it must not stop a run that will write a better one
            logger.warning("The earlier best checkpoint will be replaced: %s", error)
            return
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode):
            self.best_value, self.best_step = state["best_value"], state["best_step"]
            self.best_model_path = str(path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if the monitored value is finite and better than before."""
        if not _inside_fit(trainer) or trainer.fast_dev_run:
            return
        value = self._monitored(trainer)
        if not trainer.strategy.broadcast(self._improves(value)):
            return
        previous = self.best_value, self.best_step
        self.best_value, self.best_step = value, trainer.global_step
        path = _folder(self.folder, trainer) / self.filename
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except BaseException:
            self.best_value, self.best_step = previous
            raise
        self.best_model_path = str(path)

    def state_dict(self) -> dict[str, Any]:
        """Monitor, mode, best value and its step, as plain values."""
        return {
            "monitor": self.monitor,
            "mode": self.mode,
            "best_value": self.best_value,
            "best_step": self.best_step,
        }

    def _monitored(self, trainer: Trainer) -> float:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ValueError(
                f"BestCheckpoint monitors {self.monitor!r}, which the validation did not log; it logged "
                f"{sorted(metrics)}; set callbacks.best.monitor to one of them."
            )
        return float(metrics[self.monitor])

    def _improves(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best_value is None:
            return True
        return value < self.best_value if self.mode == "min" else value > self.best_value


def _folder(folder: str | Path | None, trainer: Trainer) -> Path:
    return Path(folder) if folder is not None else Path(trainer.default_root_dir) / "checkpoints"


def _inside_fit(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates directly after the current training batch."""
    loop = trainer.fit_loop.epoch_loop
    return trainer.enable_validation and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def _rewind_loops(state: dict[str, Any], in_validation: bool) -> None:
    """Drops the started but unfinished batch from the saved loop counters, in place.

    Lightning 2.6.6 resets the current counters on restart but not the totals, so that later validations come one
    batch early, and it repeats an interrupted validation with as many batches missing as had been done (measured).
    """
    progress = state["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        counters.update(dict.fromkeys(("ready", "started", "processed"), counters["completed"]))
    if in_validation:  # one batch started, none done: Lightning then runs the validation before it trains on
        progress = state["epoch_loop.val_loop.batch_progress"]
        progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        progress["current"] = dict.fromkeys(progress["current"], 0)
        progress["is_last_batch"] = False


def _estimated_bytes(module: LightningModule) -> int:
    """Weights, two optimiser moments and the average of each trainable parameter, plus its buffers."""
    parameters = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in module.buffers())
    return 4 * parameters + buffers
