"""Signals that arrive at every moment of a run: where it stops, what it saves, and that nothing is lost."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import stat

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader, IterableDataset

from callbacks.csv_logger import AppendingCSVLogger
from callbacks.ema import EMA
from callbacks.progress import ProgressLog
from reliability.checkpoints import BestCheckpoint, LastCheckpoint, read_checkpoint
from reliability.preemption import Preemption, requeue, slurm_job
from reliability.stop_signals import StopSignals
from tests.callbacks.conftest import VAL_BATCHES, loader, make_trainer


class SignalIn(Callback):
    """Sends signals to this process when a batch of a stage starts; in a validation the first after `step`."""

    def __init__(self, stage, batch_idx, *signals, step=None):
        self.moment, self.step, self.signals = (stage, batch_idx), step, signals

    def _send(self, trainer, stage, batch_idx):
        if (stage, batch_idx) == self.moment and self.step in (None, trainer.global_step):
            signals, self.signals = self.signals, ()
            for signum in signals:
                os.kill(os.getpid(), signum)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._send(trainer, "train", batch_idx)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self._send(trainer, "sanity" if trainer.sanity_checking else "val", batch_idx)

    def on_test_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self._send(trainer, "test", batch_idx)


@pytest.fixture
def stop():
    with StopSignals() as stop:
        yield stop


def watching(stop, *others, every_n_steps=1000):
    preemption = Preemption()
    preemption.watch(stop)
    return [EMA(0.9), preemption, *others, BestCheckpoint(), LastCheckpoint(every_n_steps)]


def step_of(folder):
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]


@pytest.mark.parametrize(
    ("moment", "accumulate", "step"),
    [
        (SignalIn("train", 0, signal.SIGTERM), 1, 1),
        (SignalIn("train", 12, signal.SIGTERM), 1, 13),
        (SignalIn("train", 12, signal.SIGTERM, signal.SIGTERM), 1, 13),
        (SignalIn("train", 12, signal.SIGINT), 1, 13),
        (SignalIn("train", 4, signal.SIGTERM), 2, 3),  # never in the middle of an accumulation window
        (
            SignalIn("train", 9, signal.SIGTERM),
            1,
            10,
        ),  # a validation is due at once: it waits for the resumed run
        (SignalIn("train", 19, signal.SIGTERM), 1, 20),
        (SignalIn("val", 0, signal.SIGTERM, step=10), 1, 10),
        (SignalIn("val", VAL_BATCHES - 1, signal.SIGTERM, step=10), 1, 10),
        (SignalIn("val", 1, signal.SIGTERM, step=20), 1, 20),
    ],
)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    fit, tiny, tmp_path, stop, moment, accumulate, step
):
    options = {"accumulate_grad_batches": accumulate, "max_steps": 20 // accumulate}
    whole, first, second = tiny(), tiny(), tiny()
    reference = fit(
        whole, [EMA(0.9), BestCheckpoint(), LastCheckpoint()], folder=tmp_path / "whole", **options
    )
    with pytest.raises(SIGTERMException):
        fit(first, watching(stop, moment), **options)
    assert stop.received in (signal.SIGTERM, signal.SIGINT)
    assert step_of(tmp_path) == step
    assert len(first.losses) == step * accumulate

    with StopSignals() as again:
        last = tmp_path / "checkpoints" / "last.ckpt"
        resumed = fit(second, watching(again), ckpt_path=last, **options)
    assert first.losses + second.losses == whole.losses
    redone = {step for step, _ in second.validations}
    assert [v for v in first.validations if v[0] not in redone] + second.validations == whole.validations
    assert torch.equal(second.net.weight, whole.net.weight)
    ours, theirs = resumed.callbacks[0].average, reference.callbacks[0].average
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("last.ckpt", "best.ckpt"):
        found, expected = (
            read_checkpoint(folder / "checkpoints" / name) for folder in (tmp_path, tmp_path / "whole")
        )
        assert found["global_step"] == expected["global_step"]
        counted = [c["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] for c in (found, expected)]
        assert counted[0] == counted[1]
        assert torch.equal(found["state_dict"]["net.weight"], expected["state_dict"]["net.weight"])


def test_a_validation_repeated_after_a_kill_is_in_the_curve_once(fit, tiny, tmp_path, stop):
    curve = AppendingCSVLogger(tmp_path)
    with pytest.raises(SIGTERMException):
        fit(tiny(), watching(stop, ProgressLog(), SignalIn("train", 9, signal.SIGTERM)), logger=[curve])
    start = shutil.copy(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "step_10.ckpt")
    for _ in range(2):  # the second one finds the rows of the first, as after a kill
        with StopSignals() as again:
            fit(
                tiny(), watching(again, ProgressLog()), ckpt_path=start, logger=[AppendingCSVLogger(tmp_path)]
            )
    rows = AppendingCSVLogger(tmp_path).rows()
    assert [row["step"] for row in rows if row["train/loss"]] == [str(step) for step in range(20)]
    assert [row["step"] for row in rows if row["val/loss"]] == ["9", "19"]


def test_a_signal_in_an_epoch_without_batches_ends_the_run_with_its_steps(tiny, tmp_path, stop):
    class OneEpoch(IterableDataset):
        left = 3

        def __iter__(self):
            while self.left:
                self.left -= 1
                yield {"image": torch.zeros(2, 3, 8, 8)}

    def send(trainer, module):
        if trainer.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    sender = Callback()
    sender.on_train_epoch_start = send
    options = {"limit_val_batches": 0, "max_epochs": 6, "val_check_interval": 1000}
    trainer = make_trainer(tmp_path, watching(stop, sender), **options)
    with pytest.raises(SIGTERMException):
        trainer.fit(tiny(), DataLoader(OneEpoch(), batch_size=None))
    assert step_of(tmp_path) == 3


def test_a_stop_in_the_sanity_check_saves_nothing(fit, tiny, tmp_path, stop):
    module = tiny()
    with pytest.raises(SIGTERMException):
        fit(module, watching(stop, SignalIn("sanity", 0, signal.SIGTERM)), num_sanity_val_steps=2)
    assert len(module.validations) == 1
    assert not (tmp_path / "checkpoints").exists()


def test_a_stop_while_a_checkpoint_is_being_restored_leaves_it_as_it_was(fit, tiny, tmp_path, stop):
    fit(tiny(), [LastCheckpoint()], max_steps=7)
    last = tmp_path / "checkpoints" / "last.ckpt"
    before, module = last.read_bytes(), tiny()
    configure = module.configure_optimizers

    def optimizer():
        result = configure()
        result.register_load_state_dict_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        return result

    module.configure_optimizers = optimizer
    with pytest.raises(SystemExit, match="143"):
        fit(module, watching(stop), ckpt_path=last)
    assert last.read_bytes() == before
    assert not last.with_name("previous.ckpt").exists()


def test_a_signal_during_a_save_waits_for_it(fit, tiny, tmp_path, stop, monkeypatch):
    import reliability.checkpoint_io as io

    fsync, calls = io.os.fsync, []

    def interrupted(descriptor):
        if not calls:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(io.os, "fsync", interrupted)
    with pytest.raises(SIGTERMException):
        fit(tiny(), watching(stop, every_n_steps=5), limit_val_batches=0)
    kept = read_checkpoint(tmp_path / "checkpoints" / "previous.ckpt")
    assert (kept["global_step"], step_of(tmp_path)) == (5, 6)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_more_signals_do_not_disturb_the_last_save(fit, tiny, tmp_path, stop, monkeypatch, signum):
    import reliability.checkpoint_io as io

    fsync = io.os.fsync

    def interrupted(descriptor):
        os.kill(os.getpid(), signum)
        fsync(descriptor)

    monkeypatch.setattr(io.os, "fsync", interrupted)
    with pytest.raises(SIGTERMException):
        fit(tiny(), watching(stop, SignalIn("train", 3, signum)), limit_val_batches=0)
    assert step_of(tmp_path) == 4


def test_a_second_ctrl_c_ends_at_once_with_the_last_complete_step(fit, tiny, tmp_path, stop, capfd):
    module = tiny()
    with pytest.raises(SystemExit) as end:
        fit(module, watching(stop, SignalIn("train", 12, signal.SIGINT, signal.SIGINT)))
    assert len(module.losses) == 12  # batch 12 did not run
    assert step_of(tmp_path) == 12
    assert stop.explains(end.value)
    assert stop.exit_code == 130
    assert "Ctrl-C: stopping after this batch; press it again to stop at once" in capfd.readouterr().err


def test_the_test_stops_after_a_batch(tiny, tmp_path, stop):
    module = tiny()
    module.test_step = lambda batch, batch_idx: module.log("test/seen", 1.0)
    seen = []
    counter = Callback()
    counter.on_test_batch_end = lambda *arguments: seen.append(arguments[4])
    trainer = make_trainer(tmp_path, watching(stop, counter, SignalIn("test", 1, signal.SIGTERM)))
    with pytest.raises(SIGTERMException):
        trainer.test(module, loader(4), verbose=False)
    assert seen in ([0], [0, 1])
    with pytest.raises(SystemExit, match="143"):
        stop.leave_if_received()


def test_before_the_first_batch_a_signal_ends_the_process_where_it_stands(fit, tiny, tmp_path, stop):
    module = tiny()
    module.setup = lambda stage: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        fit(module, watching(stop))
    assert not (tmp_path / "checkpoints").exists()
    os.kill(os.getpid(), signal.SIGTERM)  # the second one changes nothing


def test_the_handlers_from_before_come_back():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    with StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.exit_code == 130
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)] == before


def test_an_exit_amid_an_import_explains_whatever_comes_of_it():
    with StopSignals() as stop:
        assert not stop.explains(ImportError("before the signal"))
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except:  # noqa: E722 - as libraries do to find out what is installed
            assert stop.explains(ImportError("of what was taken for missing"))
    assert stop.exit_code == 143


def test_a_noted_signal_explains_what_follows_from_it_alone():
    with StopSignals() as stop:
        stop.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
    assert not stop.explains(ValueError("a mistake"))
    replaced = OSError("raised while the signal's own exception passed")
    replaced.__context__ = SystemExit(143)
    assert stop.explains(replaced)
    assert stop.explains(RuntimeError("DataLoader worker (pid 12) is killed by signal: Terminated."))


def test_under_slurm_its_signal_stops_the_run_and_lightnings_handlers_stay_out(
    fit, tiny, tmp_path, stop, monkeypatch
):
    variables = {
        "JOB_ID": "77",
        "JOB_NAME": "train",
        "NTASKS": "1",
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    parts = watching(stop, SignalIn("train", 4, signal.SIGUSR1))
    with pytest.raises(SIGTERMException):
        fit(tiny(), parts)
    assert stop.received in stop.requeue_after
    assert step_of(tmp_path) == 5
    assert not list(tmp_path.glob("hpc_ckpt*"))  # what Lightning would have saved inside its handler
    assert signal.SIGTERM not in stop.requeue_after  # scancel sends it too


def test_what_scontrol_answers_is_one_line_in_the_log(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "reliability.preemption")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    requeue()
    assert caplog.messages == [
        "SLURM job 77 was not requeued: scontrol requeue 77 failed ([Errno 2] No such file or directory: 'scontrol'); "
        "submit it again to go on."
    ]
    script = tmp_path / "scontrol"
    script.write_text("#!/bin/sh\necho Invalid job id >&2\nexit 1\n")
    script.chmod(stat.S_IRWXU)
    requeue()
    assert "scontrol requeue 77 failed (Invalid job id)" in caplog.messages[-1]
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert (tmp_path / "asked").read_text() == "requeue 70_3\n"
    assert caplog.messages[-1] == "SLURM job 70_3 is back in the queue"
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name)
    assert slurm_job() is None
