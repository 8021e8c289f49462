"""Every name of Lightning's that its documentation does not promise, behind functions with plain names.

No other file reaches one, and `check_names` says which one a new release has moved. Two lower rooms, which may not
import this one, read a counter for which there is no public name, the training batches of the whole run:
`fit_loop.epoch_loop.batch_progress.total.processed` in lightning_modules/learning.py and datamodules/step_datamodule.py.

Needs no function: the step under which loggers file a batch is `trainer.global_step` before it and
`trainer.global_step - 1` after it and in the validation that follows, for each optimiser step is one batch that stepped.
"""

from __future__ import annotations

import operator
import subprocess
from typing import Any

import lightning
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

NAMES = (
    "_signal_connector.received_sigterm",
    "_signal_connector.register_signal_handlers",
    "_signal_connector.teardown",
    "fit_loop._data_fetcher",
    "fit_loop.restarting",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop._broadcast_sigterm_tensor",
    "fit_loop.epoch_loop._should_check_val_fx",
    "fit_loop.epoch_loop.batch_progress.current.completed",
    "fit_loop.epoch_loop.batch_progress.current.processed",
    "fit_loop.epoch_loop.batch_progress.total.processed",
    "fit_loop.epoch_loop.val_loop.batch_progress.total.completed",
    "fit_loop.epoch_loop.val_loop.batch_progress.total.started",
    "precision_plugin",
    "strategy.launcher",
)


def check_names(trainer: Trainer) -> None:
    """Looks up every name that this file uses.

    Raises:
        ValueError: one is gone; the sentence says which.
    """
    for name in NAMES:
        try:
            operator.attrgetter(name)(trainer)
        except AttributeError:
            raise ValueError(
                f"Lightning {lightning.__version__} has no trainer.{name}, which reliability/lightning_internals.py uses; "
                "install the release that requirements.lock names, or adapt that file"
            ) from None


# ---- counters


def set_logger_step(trainer: Trainer, step: int) -> None:
    """Sets the step under which the loggers file the next batch."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def validation_follows(trainer: Trainer) -> bool:
    """Whether a validation comes directly after the training batch at hand."""
    due = trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    return trainer.enable_validation and due


def num_validation_batches(trainer: Trainer) -> int:
    """Completed batches of all validations of this fit."""
    return trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.completed


def set_num_validation_batches(trainer: Trainer, count: int) -> None:
    """Sets the counter of `num_validation_batches`, with no batch under way."""
    total = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
    total.ready = total.started = total.processed = total.completed = count


def num_batches_of_epoch(trainer: Trainer) -> tuple[int, int]:
    """Training batches of this epoch: those whose optimiser step may be taken, and those counted as complete."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.processed, progress.completed


def rewind_counters(checkpoint: dict[str, Any], *, in_validation: bool) -> None:
    """Drops the started but unfinished batch from the loop counters of a checkpoint, in place.

    Lightning 2.6.6 resets the current counters on restart but not the totals, so that later validations come one
    batch early, and it repeats an interrupted validation with as many batches missing as had been done (measured).
    """
    state = checkpoint["loops"]["fit_loop"]
    progress = state["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        counters.update(dict.fromkeys(("ready", "started", "processed"), counters["completed"]))
    if in_validation:  # one batch started, none done: Lightning then runs the validation before it trains on
        progress = state["epoch_loop.val_loop.batch_progress"]
        progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        progress["current"] = dict.fromkeys(progress["current"], 0)
        progress["is_last_batch"] = False


# ---- stopping


def stop_after_batch(trainer: Trainer) -> None:
    """Has the loop raise SIGTERMException once it has counted the batch at hand."""
    trainer._signal_connector.received_sigterm = True


def repeat_interrupted_validation(trainer: Trainer) -> None:
    """Has the resumed fit repeat the validation after its last step if that one was interrupted."""
    trainer.fit_loop.__class__ = _ValidatingFitLoop


def leave_signals_alone(trainer: Trainer) -> None:
    """Takes away Lightning's signal handlers, before it sets them, and its agreement of the processes in each batch."""
    trainer._signal_connector = _NoHandlers(trainer)
    trainer.fit_loop.epoch_loop.__class__ = _AgreedEpochLoop


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


# ---- parts


def loss_scaler(trainer: Trainer) -> Any | None:
    """The GradScaler of precision 16-mixed; None of every other precision."""
    return getattr(trainer.precision_plugin, "scaler", None)


def started_processes(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    """The further processes of this machine that Lightning started, by their number."""
    return getattr(trainer.strategy.launcher, "procs", [])


def take_over_processes(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    """The same, no longer watched by Lightning, whose thread would kill this process soon after one of them fails."""
    started = list(started_processes(trainer))
    if started:
        launcher = trainer.strategy.launcher
        launcher.procs.clear()  # Lightning's thread looks at this very list, and ends if it is empty
        launcher.procs = started
    return started
