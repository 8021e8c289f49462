"""`python train.py` as a process of its own that is told to stop, and the same command given again."""

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reliability.checkpoint_io import read_checkpoint
from runs.folder import status
from tests.runs.conftest import ROOT, TINY, Door
from tests.runs.same_state import assert_same_runs, curve, steps_done

COMMAND = (
    *TINY,
    "resume=auto",
    "trainer.max_steps=30",
    "trainer.val_check_interval=10",
    "trainer.log_every_n_steps=1",
    "datamodule.val_batch_size=1",
    "callbacks.samples=null",
    "module.num_warmup_steps=3",
)
SHORT = (*TINY, "run_dir=run", "resume=auto", "trainer.log_every_n_steps=1", "callbacks.samples=null")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
STARTS_WITHIN_S, ENDS_WITHIN_S = 240, 90  # an idle machine needs 10 and 2; this one may be busy

Process = subprocess.Popen[bytes]
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `python train.py` in a process group of its own; whatever is left of it at the end is killed."""
    started: list[Process] = []

    def call(*arguments: str, **variables: str) -> Process:
        with open(tmp_path / "screen.log", "ab") as screen:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *arguments],
                cwd=tmp_path,
                env=os.environ | ONE_THREAD | variables,
                stdout=screen,
                stderr=screen,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield call
    for process in started:
        if _group_lives(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, str(ROOT / "train.py"), *COMMAND, "run_dir=run"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


def _group_lives(process: Process) -> bool:
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_nothing_is_left(process: Process) -> None:
    """Loader workers and other ranks end with the main process, or soon after it."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while _group_lives(process):
        assert time.monotonic() < deadline, "some process of the run is still there"
        time.sleep(0.05)


def wait_until(process: Process, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not condition():
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline, "the run did not come this far"
        time.sleep(0.01)


def freeze_in_validation(process: Process, run_dir: Path) -> int:
    """Halts the process between the last step before a validation and the first one after it; returns that step."""
    for step in (10, 20):
        wait_until(process, lambda step=step: steps_done(run_dir) >= step)
        process.send_signal(signal.SIGSTOP)
        if steps_done(run_dir) == step:
            return step
        process.send_signal(signal.SIGCONT)
    raise AssertionError("the machine is too busy: no validation was caught")


def saved_step(run_dir: Path) -> int:
    return int(read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["global_step"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_at_any_step_and_the_same_command_again(start: Start, tmp_path: Path, whole: Path) -> None:
    run_dir, step = tmp_path / "run", random.SystemRandom().randint(2, 28)
    process = start(*COMMAND, "run_dir=run")
    wait_until(process, lambda: steps_done(run_dir) >= step)
    process.terminate()
    assert process.wait(ENDS_WITHIN_S) == 143
    assert status(run_dir) == "stopped: SIGTERM"
    assert saved_step(run_dir) == steps_done(run_dir) >= step
    assert (
        "stopped: SIGTERM; continue with: python train.py resume=run" in (run_dir / "train.log").read_text()
    )

    assert start(*COMMAND, "run_dir=run").wait(STARTS_WITHIN_S) == 0
    assert status(run_dir) == "finished"
    assert_same_runs(run_dir, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_to_the_whole_group_in_a_validation(
    start: Start, door: Door, tmp_path: Path, whole: Path
) -> None:
    """As `timeout` and SLURM do: the loader's workers get the signal too. Averages are in place of the weights then."""
    run_dir = tmp_path / "run"
    process = start(*COMMAND, "run_dir=run", "datamodule.num_workers=2")
    step = freeze_in_validation(process, run_dir)
    os.killpg(process.pid, signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    assert process.wait(ENDS_WITHIN_S) == 143
    assert_nothing_is_left(process)
    assert saved_step(run_dir) == steps_done(run_dir) == step

    assert door(*COMMAND, "run_dir=run", "datamodule.num_workers=2") == 0
    assert_same_runs(run_dir, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_before_the_first_step(start: Start, door: Door, tmp_path: Path, whole: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(*COMMAND, "run_dir=run")
    wait_until(process, lambda: status(run_dir) == "running")
    process.terminate()
    assert process.wait(ENDS_WITHIN_S) == 143
    assert status(run_dir) == "stopped: SIGTERM"
    log = (run_dir / "train.log").read_text()
    assert "stopped: SIGTERM before the first step was saved; start it again with resume=auto" in log

    assert door(*COMMAND, "run_dir=run") == 0
    assert_same_runs(run_dir, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_twice_to_the_whole_group(start: Start, door: Door, tmp_path: Path, whole: Path) -> None:
    """The second one may fall into an update, where nothing can be saved: the run goes on from the save before."""
    run_dir = tmp_path / "run"
    command = (*COMMAND, "run_dir=run", "datamodule.num_workers=2", "callbacks.last.every_n_steps=7")
    process = start(*command)
    wait_until(process, lambda: steps_done(run_dir) >= 8)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    assert process.wait(ENDS_WITHIN_S) == 130
    assert_nothing_is_left(process)
    assert status(run_dir) == "stopped: Ctrl-C"
    assert saved_step(run_dir) >= 7

    assert door(*command) == 0
    assert_same_runs(run_dir, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_slurms_signal_requeues_the_job_once_the_checkpoint_is_there(start: Start, tmp_path: Path) -> None:
    """In the environment of a job step; the requeued job runs the same command."""
    run_dir, scontrol = tmp_path / "run", tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nls {run_dir}/checkpoints >> {tmp_path}/asked\n'
    )
    scontrol.chmod(stat.S_IRWXU)
    job = {"JOB_ID": "79", "ARRAY_JOB_ID": "70", "ARRAY_TASK_ID": "3", "JOB_NAME": "train"}
    task = {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "localhost"}
    variables = {f"SLURM_{name}": value for name, value in (job | task).items()}
    path = f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"
    process = start(*COMMAND, "run_dir=run", **variables, PATH=path)
    wait_until(process, lambda: steps_done(run_dir) >= 4)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(ENDS_WITHIN_S) == 143
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:2] == ["requeue", "70_3"]
    assert asked.count("requeue") == 1
    assert "last.ckpt" in asked
    assert saved_step(run_dir) == steps_done(run_dir)
    assert not list(run_dir.glob("hpc_ckpt*"))  # Lightning's own handler would have written it
    assert "SLURM job 70_3 is back in the queue" in (run_dir / "train.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_stop_at_the_same_step(start: Start, tmp_path: Path) -> None:
    """SIGTERM to one of them only: the other one, started by Lightning, ends too and nothing is left."""
    run_dir = tmp_path / "run"
    process = start(*COMMAND, "run_dir=run", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    wait_until(process, lambda: steps_done(run_dir) >= 4)
    process.terminate()
    assert process.wait(ENDS_WITHIN_S) == 143
    assert_nothing_is_left(process)
    assert status(run_dir) == "stopped: SIGTERM"
    assert saved_step(run_dir) == steps_done(run_dir)


@pytest.mark.parametrize("moment", ["setup", "test_step", "on_test_end"])
def test_sigterm_between_training_and_the_end(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The training is not repeated, and no row of the curve is written twice."""
    from datamodules.builtin import BuiltinPhotosDataModule
    from lightning_modules.autoencoder import Autoencoder

    owner = BuiltinPhotosDataModule if moment == "setup" else Autoencoder
    original = getattr(owner, moment)

    def interrupted(self: Any, *arguments: Any, **named: Any) -> Any:
        if moment != "setup" or "test" in (*arguments, *named.values()):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **named)

    short = ("trainer.val_check_interval=2", "datamodule.val_batch_size=8")
    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, interrupted)
        assert door(*SHORT, *short) == 143
    assert status(tmp_path / "run") == "stopped: SIGTERM"
    assert saved_step(tmp_path / "run") == 2
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert door(*SHORT, *short) == 0
    assert [row["step"] for row in curve(tmp_path / "run")] == ["0", "1", "1", "2"]
    assert "test/psnr" in curve(tmp_path / "run")[-1]
    assert "val/loss" in (tmp_path / "run" / "metrics.json").read_text()


def test_a_run_that_starts_again_without_a_checkpoint_writes_its_curve_once(
    door: Door, tmp_path: Path
) -> None:
    assert door(*SHORT) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "status").write_text("running\n")
    assert door(*SHORT) == 0
    assert [row["step"] for row in curve(tmp_path / "run")] == ["0", "1", "2"]
