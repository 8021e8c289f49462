"""Images per second, seconds per step, memory and the share of time spent waiting for data."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from reliability.step_callback import StepCallback


class Throughput(StepCallback):
    """Logs the speed of the last n steps; validations and the writing of checkpoints do not count.

    It reads the host's clock alone, so it never waits for the device, which lags by a few kernels only.

    Args:
        every_n_steps: optimiser steps between figures; the trainer's log_every_n_steps puts them into one row
            with the other metrics.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__(every_n_steps)
        self.images_seen = 0
        self.figures: dict[str, float] = {}
        self._start_window()
        self._ended_at: float | None = None  # None: the time until the next batch is left out
        self._began_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the first window and the peak of the device's memory."""
        self._start_window()
        self._ended_at = None
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._began_at = time.perf_counter()
        super().on_train_batch_start(trainer, pl_module, *_)
        if self._ended_at is not None:
            self._wait_s += self._began_at - self._ended_at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch and, if due, logs."""
        self._ended_at = time.perf_counter()
        self._busy_s += self._ended_at - self._began_at
        images = len(batch["index"]) * trainer.world_size
        self.images_seen += images
        self._images += images
        self._steps += self.stepped(trainer)
        if self.is_due(trainer):
            total_s = max(self._busy_s + self._wait_s, 1e-9)
            self.figures = {
                "images_per_s": self._images / total_s,
                "step_s": total_s / self._steps,
                "data_wait_share": self._wait_s / total_s,
                "peak_memory_gib": peak_memory_bytes(pl_module.device) / 2**30,
            }
            pl_module.log("images_per_s", self.figures["images_per_s"], prog_bar=True, logger=False)
            pl_module.log_dict({f"speed/{name}": value for name, value in self.figures.items()})
            self._start_window()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._ended_at = None

    on_save_checkpoint = on_validation_start

    def state_dict(self) -> dict[str, Any]:
        return {"images_seen": self.images_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images_seen = int(state_dict["images_seen"])

    def _start_window(self) -> None:
        self._busy_s = self._wait_s = 0.0
        self._images = self._steps = 0


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the allocated memory on a CUDA device, else of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
