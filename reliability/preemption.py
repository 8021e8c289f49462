"""A clean end when the machine is wanted back: the loops stop at the next step or evaluated batch after a signal."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

from reliability import lightning_internals
from reliability.step_callback import StepCallback
from reliability.stop_signals import StopSignals

logger = logging.getLogger(__name__)

REQUEUE_TIMEOUT_S = 30


class Preemption(StepCallback):
    """Ends a training, its validations and its test at the next batch boundary after a signal.

    A training stops after a complete optimiser step, a validation and the test after a batch; LastCheckpoint then
    saves, and an interrupted validation starts again when the run is resumed. Lightning's own handlers are replaced:
    they call a collective, and under SLURM save a checkpoint, inside a signal handler, wherever the run is just then.

    Several processes agree on the boundary by the maximum of their notes, one all-reduce of 4 bytes on the CPU after
    each optimiser step and each evaluated batch (median 0.3 ms, two processes on two busy cores); they need the same
    number of evaluation batches, which our data modules give them. A single process communicates nothing.

    It does nothing until `watch` has told it where signals are noted.

    Args:
        requeue_signals: signals after which a SLURM job is put back into the queue. SIGTERM is not among them by
            default because scancel sends it too.
    """

    def __init__(self, requeue_signals: Sequence[str] = ("SIGUSR1",)) -> None:
        super().__init__()
        self.requeue_signals = tuple(signal.Signals[name] for name in requeue_signals)
        self._stop: StopSignals | None = None
        self._agreed = False
        self._group: Any = None

    def watch(self, stop: StopSignals) -> None:
        """Looks at `stop` at each boundary; under SLURM it takes the requeue signals as well."""
        self._stop = stop
        if slurm_job() is not None:
            stop.take(*self.requeue_signals)
            stop.requeue_after = self.requeue_signals

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the place of Lightning's handlers before it registers them."""
        lightning_internals.repeat_interrupted_validation(trainer)
        if self._stop is not None:
            lightning_internals.leave_signals_alone(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on signals wait for a boundary."""
        self._agreed = False
        if self._stop is not None:
            self._stop.deferred = True
        if trainer.world_size > 1 and self._group is None:
            self._group = distributed.new_group(backend="gloo")

    on_sanity_check_start = on_test_start = on_train_start

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Has Lightning stop once it has counted this batch, if that completed an optimiser step."""
        if self.stepped(trainer) and self._agree(trainer):
            lightning_internals.stop_after_batch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops as well after an epoch that had no batch to end."""
        if self._agreed or self._agree(trainer):
            lightning_internals.stop_after_batch(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves a validation that is due after the last batch to the resumed run."""
        if self._agreed:
            raise SIGTERMException

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stops within an evaluation, whose results so far are dropped."""
        if self._agree(trainer):
            raise SIGTERMException

    on_test_batch_end = on_validation_batch_end

    def _agree(self, trainer: Trainer) -> bool:
        """Whether any process has noted a signal; the same answer in all of them."""
        if self._stop is None:
            return False
        received = self._stop.received
        if trainer.world_size > 1:
            number = torch.tensor(received or 0, dtype=torch.int32)
            distributed.all_reduce(number, op=distributed.ReduceOp.MAX, group=self._group)
            received = signal.Signals(int(number)) if number else None
        if received is not None:
            self._agreed = self._stop.stopping = True
            self._stop.received = received
            if trainer.is_global_zero:
                logger.info("%s: stopping at step %d", received.name, trainer.global_step)
        return self._agreed


def slurm_job() -> str | None:
    """This SLURM job as scontrol names it, JOB or ARRAYJOB_TASK; None elsewhere."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> None:
    """Puts this SLURM job back into the queue; if that fails, the log says so and the run is as it was stopped."""
    job = slurm_job()
    assert job is not None, "requeue() is for SLURM jobs"
    try:
        command = ["scontrol", "requeue", job]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=REQUEUE_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "SLURM job %s was not requeued: scontrol requeue %s failed (%s); submit it again to go on.",
            *(job, job, (getattr(error, "stderr", None) or str(error)).strip()),
        )
    else:
        logger.info("SLURM job %s is back in the queue", job)
