"""What callbacks share that act after optimiser steps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StepCallback(Callback):
    """Knows in `on_train_batch_end` whether the batch completed an optimiser step, and whether that one is due.

    Args:
        every_n_steps: optimiser steps between two that are due; None means that none is.

    Attributes:
        batch_start_step: optimiser steps before the batch at hand, which is also the step of its row in the loggers.

    Raises:
        ValueError: if every_n_steps is below 1.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"{type(self).__name__} every_n_steps is {every_n_steps}, expected at least 1")
        self.every_n_steps = every_n_steps
        self.batch_start_step = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.batch_start_step = trainer.global_step

    def stepped(self, trainer: Trainer) -> bool:
        """Whether the batch completed an optimiser step."""
        return trainer.global_step != self.batch_start_step

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the batch completed a step at which to act."""
        if self.every_n_steps is None or not self.stepped(trainer):
            return False
        return trainer.global_step % self.every_n_steps == 0
