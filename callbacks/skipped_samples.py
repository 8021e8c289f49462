"""Logs how many training samples could not be read, and stops a run that trains on too few of its photos."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from reliability.step_callback import StepCallback

logger = logging.getLogger(__name__)


class TooManySkippedError(ValueError):
    """More training samples than allowed stand in for files that cannot be read."""


class SkippedSamples(StepCallback):
    """Logs data/skipped_share: samples replaced because their file could not be read, among all read so far.

    Counted over all processes since this process began to train: a run that was stopped here, and whose files were
    mended, starts with a clean count when it is resumed. The figures are those of the data module's `skipped`.

    Args:
        max_share: largest share of skipped samples, in [0, 1].
        min_samples: samples read before a share is judged: 1 bad file among the first 10 stops nothing.
        every_n_steps: optimiser steps between figures.

    Raises:
        ValueError: if max_share lies outside [0, 1].
    """

    def __init__(self, max_share: float = 0.01, min_samples: int = 1000, every_n_steps: int = 50) -> None:
        if not 0.0 <= max_share <= 1.0:
            raise ValueError(
                f"callbacks.skipped_samples.max_share is {max_share}; expected a share in [0, 1]"
            )
        super().__init__(every_n_steps)
        self.max_share = max_share
        self.min_samples = min_samples
        self._verdict: TooManySkippedError | None = None
        self._reported = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reported = 0
        self._verdict = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stops the run if the last look said so: between two batches a complete step can be saved.

        Raises:
            TooManySkippedError: in all processes alike.
        """
        super().on_train_batch_start(trainer, pl_module, *_)
        if self._verdict is not None:
            raise self._verdict

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        samples = getattr(trainer.datamodule, "skipped", None)
        if samples is None or not self.is_due(trainer):
            return
        num_skipped, num_read = samples.num_skipped, samples.num_read
        if trainer.world_size > 1:
            counts = torch.tensor([num_skipped, num_read], dtype=torch.float64, device=pl_module.device)
            num_skipped, num_read = (int(n) for n in trainer.strategy.reduce(counts, reduce_op="sum"))
        share = num_skipped / max(1, num_read)
        pl_module.log("data/skipped_share", share)
        if num_skipped > self._reported and trainer.is_global_zero:
            logger.warning(
                "skipped %d of %d training samples so far (%.2f %%)", num_skipped, num_read, 100 * share
            )
        self._reported = num_skipped
        if num_read >= self.min_samples and share > self.max_share:
            files = f"; the last were {', '.join(samples.last)}" if samples.last else ""
            self._verdict = TooManySkippedError(
                f"{num_skipped} of {num_read} training samples could not be read ({100 * share:.1f} %), more than "
                f"callbacks.skipped_samples.max_share={self.max_share:g} allows{files}; mend or remove the files that "
                "python -m datamodules.check root=DIR lists and go on with resume=auto, or raise "
                "callbacks.skipped_samples.max_share"
            )
