"""One line in train.log every n steps and after each validation."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.csv_logger import AppendingCSVLogger
from callbacks.throughput import Throughput
from reliability.step_callback import StepCallback

logger = logging.getLogger(__name__)


class ProgressLog(StepCallback):
    """Logs `step 500/10000  images 8000  loss 0.1234  96.2 images/s  0.166 s/step  1.43 GiB`.

    Images, speed and memory come from the Throughput callback and are left out without it. Rows of metrics.csv that a
    resumed run writes again, all of them if it found no checkpoint, are removed.

    Args:
        every_n_steps: optimiser steps between lines.
        loss: name of the logged training loss.
    """

    def __init__(self, every_n_steps: int = 50, loss: str = "train/loss") -> None:
        super().__init__(every_n_steps)
        self.loss = loss
        self._resumed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says where the run starts."""
        self._resumed = trainer.ckpt_path is not None and trainer.global_step > 0
        if self._resumed and trainer.is_global_zero:
            logger.info("resumed at step %d from %s", trainer.global_step, trainer.ckpt_path)
        if not self._resumed:  # killed before its first checkpoint, a run starts again in its folder
            _drop_rows_from(0, trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._resumed:
            self._resumed = False
            _drop_rows_from(self.batch_start_step, trainer)
        if self.is_due(trainer) and trainer.is_global_zero:
            logger.info("%s", "  ".join(self._parts(trainer)))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the row of this validation if the run was killed after it and now begins with it again."""
        if self._resumed:
            _drop_rows_from(trainer.global_step - 1, trainer, keep=self.loss)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the figures of the validation."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        figures = [f"{k} {float(v):.4g}" for k, v in trainer.callback_metrics.items() if k.startswith("val/")]
        logger.info("%s", "  ".join([f"step {trainer.global_step}  validation", *figures]))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the row of an earlier test of this run."""
        for csv_logger in _csv_loggers(trainer):
            csv_logger.drop_metrics("test/")

    def _parts(self, trainer: Trainer) -> list[str]:
        parts = [f"step {trainer.global_step}/{trainer.max_steps}"]
        speed = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)
        if speed is not None:
            parts.append(f"images {speed.images_seen}")
        metrics = trainer.callback_metrics
        if self.loss in metrics:
            parts.append(f"loss {float(metrics[self.loss]):.4g}")
        if speed is not None and speed.figures:
            text = "{images_per_s:.1f} images/s  {step_s:.3f} s/step  {peak_memory_gib:.2f} GiB"
            parts.append(text.format(**speed.figures))
        return parts


def _drop_rows_from(logger_step: int, trainer: Trainer, keep: str = "") -> None:
    for csv_logger in _csv_loggers(trainer):
        csv_logger.drop_from(logger_step, keep=keep)


def _csv_loggers(trainer: Trainer) -> list[AppendingCSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, AppendingCSVLogger)]
