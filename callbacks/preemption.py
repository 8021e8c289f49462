"""A clean end when the machine is wanted back: signals are noted, and the loops stop where nothing is half done."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

logger = logging.getLogger(__name__)

EXIT_CTRL_C, EXIT_SIGTERM = 130, 143
REQUEUE_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2")
REQUEUE_TIMEOUT_S = 30


class StopSignals:
    """Takes SIGTERM and Ctrl-C of this process (other signals by `take`) for as long as the `with` block runs.

    While `deferred` is False there is nothing to save and a signal ends the process where it stands. While it is
    True a signal is only noted, and whoever set it looks at `received` when nothing is half done. Then a second
    Ctrl-C ends at once, for a batch may take long; once `stopping` is True nothing disturbs the last save.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.deferred = self.stopping = False
        self._before: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> StopSignals:
        self.take(signal.SIGTERM, signal.SIGINT)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def take(self, *signals: signal.Signals) -> None:
        """Notes these signals too; outside the main thread Python cannot, and all stays as it is."""
        if threading.current_thread() is threading.main_thread():
            for signum in set(signals) - self._before.keys():
                self._before[signum] = signal.signal(signum, self._note)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that the received signal ended."""
        return EXIT_CTRL_C if self.received == signal.SIGINT else EXIT_SIGTERM

    def leave_if_received(self) -> None:
        """Ends the process if a signal was noted; from here on signals do so themselves again.

        Raises:
            SystemExit: with `exit_code`.
        """
        self.deferred = False
        if self.received is not None:
            raise SystemExit(self.exit_code)

    def explains(self, error: BaseException) -> bool:
        """Whether an exception follows from the received signal and is no failure of its own.

        A signal to the whole process group ends loader workers too, and torch then raises a RuntimeError.
        """
        ends = isinstance(error, (SystemExit, KeyboardInterrupt)) or "loader worker" in str(error).lower()
        return self.received is not None and ends

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked loader worker: the main process ends it
            return
        if self.received is None:
            self.received = signal.Signals(signum)
            self._expect_dead_workers()
            if not self.deferred:
                raise SystemExit(self.exit_code) if signum != signal.SIGINT else KeyboardInterrupt
            if signum == signal.SIGINT:  # the logging module may be in the middle of a line
                os.write(2, b"\nCtrl-C: stopping after this batch; press it again to stop at once\n")
        elif signum == signal.SIGINT and not self.stopping:
            raise KeyboardInterrupt

    def _expect_dead_workers(self) -> None:
        """Takes away torch's handler, which raises in the middle of an update or of a save when a worker is gone."""
        if hasattr(signal, "SIGCHLD"):
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class Preemption(Callback):
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

    Raises:
        ValueError: for a signal other than SIGTERM, SIGUSR1 and SIGUSR2.
    """

    def __init__(self, requeue_signals: Sequence[str] = ("SIGUSR1",)) -> None:
        unknown = [name for name in requeue_signals if name not in REQUEUE_SIGNALS]
        if unknown:
            raise ValueError(
                f"Preemption requeue_signals has {unknown[0]!r}, expected names among {', '.join(REQUEUE_SIGNALS)}; "
                "set callbacks.preemption.requeue_signals=[SIGUSR1]."
            )
        self.requeue_signals = tuple(signal.Signals[name] for name in requeue_signals)
        self._stop: StopSignals | None = None
        self._agreed = False
        self._group: Any = None

    def watch(self, stop: StopSignals) -> None:
        """Looks at `stop` at each boundary; under SLURM it takes the requeue signals as well."""
        self._stop = stop
        if slurm_job() is not None:
            stop.take(*self.requeue_signals)

    @property
    def wants_requeue(self) -> bool:
        """Whether the run was stopped by a signal that puts its SLURM job back into the queue."""
        received = None if self._stop is None else self._stop.received
        return received in self.requeue_signals and slurm_job() is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the place of Lightning's handlers before it registers them."""
        trainer.fit_loop.__class__ = _ValidatingFitLoop
        if self._stop is not None:
            trainer._signal_connector = _NoHandlers(trainer)
            trainer.fit_loop.epoch_loop.__class__ = _AgreedEpochLoop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on signals wait for a boundary."""
        self._agreed = False
        if self._stop is not None:
            self._stop.deferred = True
        if trainer.world_size > 1 and self._group is None:
            self._group = distributed.new_group(backend="gloo")

    on_sanity_check_start = on_test_start = on_train_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Has Lightning stop once it has counted this batch, if that completed an optimiser step."""
        if not trainer.fit_loop._should_accumulate() and self._agree(trainer):
            trainer._signal_connector.received_sigterm = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops as well after an epoch that had no batch to end."""
        if self._agreed or self._agree(trainer):
            trainer._signal_connector.received_sigterm = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves a validation that is due after the last batch to the resumed run."""
        if self._agreed:
            raise SIGTERMException

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
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
        self._agreed = received is not None
        if received is not None:
            self._stop.received, self._stop.stopping = received, True
            if trainer.is_global_zero:
                logger.info("%s: stopping at step %d", received.name, trainer.global_step)
        return self._agreed


class _NoHandlers(_SignalConnector):
    """Lightning's flag, which its loops read at their boundaries, without Lightning's handlers."""

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False

    def teardown(self) -> None:
        """There is nothing to put back."""


class _AgreedEpochLoop(_TrainingEpochLoop):
    """Lightning's loop without its own agreement of the processes before each batch."""

    def _broadcast_sigterm_tensor(self) -> None:
        """Does nothing: Preemption has agreed after the step, and reading the answer waits for the device."""


class _ValidatingFitLoop(_FitLoop):
    """Lightning's loop, which would take a run as complete that was stopped in the validation after its last step."""

    @property
    def done(self) -> bool:
        """Whether all steps are made and the interrupted validation, if there is one, was repeated."""
        progress = self.epoch_loop.val_loop.batch_progress.total
        return not (self.restarting and progress.started > progress.completed) and super().done


def slurm_job() -> str | None:
    """This SLURM job as scontrol names it, JOB or ARRAYJOB_TASK; None elsewhere."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> None:
    """Puts this SLURM job back into the queue; if that fails, the log says so and the run is as it was stopped."""
    job = slurm_job()
    assert job is not None, "requeue() is for SLURM jobs"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=REQUEUE_TIMEOUT_S
        )
        reason = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason:
        logger.warning(
            "SLURM job %s was not requeued: scontrol requeue %s failed (%s); submit it again to go on.",
            *(job, job, reason),
        )
    else:
        logger.info("SLURM job %s is back in the queue", job)
