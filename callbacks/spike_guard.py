"""Skips the update of a step whose loss jumps, and goes back to a checkpoint if that happens too often."""

from __future__ import annotations

import logging
import math
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.ema import EMA
from reliability.checkpoint_io import read_checkpoint
from reliability.checkpoints import checkpoint_folder
from reliability.lightning_internals import loss_scaler
from reliability.step_callback import StepCallback

logger = logging.getLogger(__name__)

MIN_HISTORY = 20  # losses before the median means something


class SpikeError(ValueError):
    """The loss jumps again and again."""


class SpikeGuard(StepCallback):
    """Leaves out the update of a step whose loss lies far above the median of the steps before it.

    A spike is a loss above median + (factor - 1) * median of the magnitudes, which for positive losses is factor times
    the median. The gradients of such a step are dropped, so that the optimiser skips it: weights and moments stay as
    they are, while data and schedule go on. After `max_skips` within `window` steps the weights, the optimiser and the
    average of the newest checkpoint from before the first of these steps come back, the learning rate is multiplied by
    `lr_factor`, and training goes on with the next batches; steps are not counted back. After `max_rollbacks` of
    these the run stops. The loss is averaged over the processes, so that all decide alike; reading it makes the host
    wait for the device in each step, which is why the guard is an option: `callbacks=spike_guard`.

    Args:
        factor: times the median that make a spike; diffusion losses of small batches vary by 2 to 3.
        window: optimiser steps of the median, and in which skips are counted.
        max_skips: skips within the window that lead to a rollback.
        lr_factor: of the learning rate at a rollback, in (0, 1].
        max_rollbacks: rollbacks before the run stops.
        folder: of the checkpoints; None means `checkpoints` under the trainer's default_root_dir.

    Attributes:
        num_skipped, num_rollbacks: so far; logged as `spikes/skipped` and `spikes/rollbacks`.

    Raises:
        ValueError: if factor, window, max_skips or lr_factor is out of range.
    """

    def __init__(
        self,
        factor: float = 10.0,
        window: int = 100,
        max_skips: int = 3,
        lr_factor: float = 0.5,
        max_rollbacks: int = 2,
        folder: str | Path | None = None,
    ) -> None:
        for name, value, fits, expected in (
            ("factor", factor, factor > 1, "above 1"),
            ("window", window, window >= MIN_HISTORY, f"at least {MIN_HISTORY}"),
            ("max_skips", max_skips, max_skips >= 1, "at least 1"),
            ("lr_factor", lr_factor, 0 < lr_factor <= 1, "in (0, 1]"),
        ):
            if not fits:
                raise ValueError(f"callbacks.spike_guard.{name} is {value}; expected {expected}")
        super().__init__()
        self.factor, self.window, self.max_skips = factor, window, max_skips
        self.lr_factor, self.max_rollbacks = lr_factor, max_rollbacks
        self.folder = folder
        self.num_skipped = self.num_rollbacks = 0
        self._history: deque[float] = deque(maxlen=window)
        self._skipped_at: list[int] = []
        self._losses: list[Tensor] = []
        self._names: list[str] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self._losses:  # the first micro-batch of the step
            self._names = []
        self._names.extend(batch["name"])

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Drops the gradients of a spike."""
        loss = float(trainer.strategy.reduce(self._mean_loss(trainer), reduce_op="mean"))
        self._losses = []
        limit = self._limit()
        if loss <= limit:
            self._history.append(loss)
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self.num_skipped += 1
        self._skipped_at.append(self.batch_start_step)
        names = ", ".join(self._names[:16])
        logger.warning(
            "step %d is skipped: its loss %.4g is above %.4g, %g times the median of the last %d steps (batch: %s)",
            *(self.batch_start_step, loss, limit, self.factor, len(self._history), names),
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Goes back to a checkpoint if there were too many skips."""
        self._skipped_at = [s for s in self._skipped_at if s > self.batch_start_step - self.window]
        pl_module.log("spikes/skipped", float(self.num_skipped))
        pl_module.log("spikes/rollbacks", float(self.num_rollbacks))
        if len(self._skipped_at) >= self.max_skips:
            self._roll_back(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Counters and the losses of the window, so that a resumed run decides as the whole one."""
        counts = {"num_skipped": self.num_skipped, "num_rollbacks": self.num_rollbacks}
        return {**counts, "history": list(self._history), "skipped_at": list(self._skipped_at)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_skipped, self.num_rollbacks = state_dict["num_skipped"], state_dict["num_rollbacks"]
        self._history = deque(state_dict["history"], maxlen=self.window)
        self._skipped_at = list(state_dict["skipped_at"])

    def _mean_loss(self, trainer: Trainer) -> Tensor:
        # Before each backward Lightning divides by the accumulation, whole or cut short, and multiplies by the scale.
        scaler = loss_scaler(trainer)
        scale = 1.0 if scaler is None else scaler.get_scale()
        return torch.stack(self._losses).mean() * (trainer.accumulate_grad_batches / scale)

    def _limit(self) -> float:
        if len(self._history) < MIN_HISTORY:
            return math.inf
        return median(self._history) + (self.factor - 1) * median(map(abs, self._history))

    def _roll_back(self, trainer: Trainer, module: LightningModule) -> None:
        what = f"{len(self._skipped_at)} of the last {self.window} steps had a spike in the loss"
        where = f"{what} at step {self.batch_start_step}"
        if self.num_rollbacks >= self.max_rollbacks:
            raise SpikeError(
                f"{where}, after {self.num_rollbacks} rollbacks; look at the samples of these steps in train.log, or "
                "lower module.optimizer.lr, or raise callbacks.spike_guard.factor"
            )
        folder = checkpoint_folder(self.folder, trainer)
        checkpoint = _newest_until(self._skipped_at[0], folder)
        if checkpoint is None:
            raise SpikeError(
                f"{where}, and {folder} holds no checkpoint from before the first of them to go back to; set "
                "callbacks.last.every_n_steps below callbacks.spike_guard.window, or lower module.optimizer.lr"
            )
        _restore(checkpoint, trainer, module, lr_factor=self.lr_factor)
        self.num_rollbacks += 1
        self._skipped_at = []
        logger.warning(
            "%s: weights, optimiser and average are those of step %d again, the learning rate is multiplied by %g",
            *(what, checkpoint["global_step"], self.lr_factor),
        )


def _newest_until(step: int, folder: Path) -> dict[str, Any] | None:
    """The checkpoint in `folder` with the largest step that is at most `step`; None if there is none."""
    found, found_step = None, -1
    for path in folder.glob("*.ckpt"):
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            logger.warning("%s", error)
            continue
        if found_step < checkpoint["global_step"] <= step:
            found, found_step = checkpoint, checkpoint["global_step"]
    return found


def _restore(
    checkpoint: dict[str, Any], trainer: Trainer, module: LightningModule, *, lr_factor: float
) -> None:
    """Puts weights, optimiser and average back; the schedule stays where it is, at a lower rate."""
    (optimizer,) = trainer.optimizers
    rates = [{k: group[k] for k in ("lr", "initial_lr") if k in group} for group in optimizer.param_groups]
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    trainer.strategy.load_optimizer_state_dict(checkpoint)
    for group, before in zip(optimizer.param_groups, rates, strict=True):
        group.update({key: rate * lr_factor for key, rate in before.items()})
    for config in trainer.lr_scheduler_configs:
        config.scheduler.base_lrs = [rate * lr_factor for rate in config.scheduler.base_lrs]
    for callback in trainer.callbacks:
        if isinstance(callback, EMA):
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
            callback.on_fit_start(trainer, module)
