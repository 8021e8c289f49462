"""Two processes on the CPU do what one does with twice the batch, and fail together."""

import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from reliability.checkpoint_io import newest_whole, read_checkpoint
from reliability.main_process import MAIN_PID_VARIABLE
from reliability.ranks import RankWatch, end_with_main
from runs.folder import is_held, status
from tests.models import tiny_parts
from tests.runs.conftest import TINY, Door
from tests.runs.real_processes import (
    ENDS_WITHIN_S,
    RUNS_WITHIN_S,
    TWO,
    RealRuns,
    all_end,
    free_port,
    ranks_of,
    torchrun_variables,
)
from tests.runs.same_state import curve, steps_done

SETTINGS = (
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=3",
    "callbacks.last.every_n_steps=2",
    "callbacks.samples.num_images=1",
    "datamodule.val_batch_size=16",
    "module.lr_schedule=constant",
    "module.num_warmup_steps=3",
)
AUTOENCODER = (*TINY, *SETTINGS)
COLORIZER = ("experiment=colorize_controlnet", "module.parts.source=base")
LATENT_DIFFUSION = (
    "experiment=latent_diffusion",
    "module.parts.vae.source=base/vae",
    "module.parts.unet.block_out_channels=[8,16,16]",
    "module.parts.unet.norm_num_groups=4",
    "module.parts.unet.attention_head_dim=2",
    "module.parts.unet.cross_attention_dim=16",
    "module.parts.text_encoder.width=16",
    "module.parts.text_encoder.num_heads=2",
)
SIX = "trainer.max_steps=6"
TWICE = "datamodule.batch_size=4"
FORK = multiprocessing.get_context("fork")  # all is imported already
ENDLESS = ("trainer.max_steps=100000", "trainer.val_check_interval=50000")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[RealRuns]:
    real = RealRuns(tmp_path)
    yield real
    real.close()


def losses(run_dir: Path, *names: str) -> dict[tuple[str, str], float]:
    rows = curve(run_dir)
    return {(row["step"], name): float(row[name]) for row in rows for name in names if name in row}


def assert_same_losses(found: Path, expected: Path, num_steps: int) -> None:
    ours, theirs = (losses(folder, "train/loss", "val/loss") for folder in (found, expected))
    assert len([key for key in theirs if key[1] == "train/loss"]) == num_steps
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert math.isclose(ours[key], value, rel_tol=0, abs_tol=1e-6), (key, ours[key], value)


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(runs: RealRuns, door: Door, tmp_path: Path) -> None:
    screen = runs.run(*AUTOENCODER, SIX, *TWO, "run_dir=two")
    two, one = tmp_path / "two", tmp_path / "one"
    assert door(*AUTOENCODER, SIX, TWICE, "run_dir=one") == 0
    assert_same_losses(two, one, num_steps=6)

    # Each file is written once, by the first process; the averages of the weights agree too.
    assert re.search(r"2 processes with the same config [0-9a-f]{12}\n", screen)
    assert screen.count("finished two") == 1
    assert {p.relative_to(two) for p in two.rglob("*")} == {p.relative_to(one) for p in one.rglob("*")}
    assert len(list((two / "samples").iterdir())) == 2
    assert (two / "metrics.json").is_file()
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (read_checkpoint(folder / "checkpoints" / name) for folder in (two, one))
        assert ours["global_step"] == theirs["global_step"]
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        averages = [next(v for k, v in c["callbacks"].items() if k.startswith("EMA")) for c in (ours, theirs)]
        assert averages[0]["num_updates"] == averages[1]["num_updates"]
        for key, value in averages[1]["average"].items():
            assert (averages[0]["average"][key] - value).abs().max() < 1e-5, key


def _fail_and_hang(pids: Any) -> None:
    """A main process that a collective holds for ever, after one of the two that it started has failed."""
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=3, num_nodes=1)
    for code in ("exit(3)", "import time; time.sleep(120)"):
        launcher.procs.append(subprocess.Popen([sys.executable, "-c", code]))
    seen_by_lightning = launcher.procs
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reliability.ranks.END_WITHIN_S", 1)
        RankWatch("{}")._watch_started(trainer)
        pids.put((len(seen_by_lightning), [process.pid for process in launcher.procs]))
        time.sleep(120)


def test_a_main_process_that_hangs_after_another_has_failed_is_killed_with_the_rest() -> None:
    pids = FORK.Queue()
    main = FORK.Process(target=_fail_and_hang, args=(pids,))
    main.start()
    seen_by_lightning, (_, hanging) = pids.get(timeout=60)
    try:
        assert seen_by_lightning == 0
        main.join(60)
        assert main.exitcode == -signal.SIGKILL
        assert not psutil.pid_exists(hanging) or all_end([psutil.Process(hanging)])
    finally:
        main.kill()


def _wait_for_main(main: int, late: bool) -> None:
    if late:
        os.kill(os.getpid(), signal.SIGSTOP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reliability.ranks.ORPHAN_ENDS_WITHIN_S", 0)
        patch.setenv(MAIN_PID_VARIABLE, str(main))
        patch.setenv("LOCAL_RANK", "1")
        end_with_main()
        time.sleep(120)


def _start_and_vanish(pid: Any, late: bool) -> None:
    other = FORK.Process(target=_wait_for_main, args=(os.getpid(), late))
    other.start()
    pid.put(other.pid)
    time.sleep(1)  # so that the queue is written and the other one watches
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("late", [False, True], ids=["while it runs", "before it looks"])
def test_a_process_whose_main_one_is_gone_ends(late: bool) -> None:
    pid = FORK.Queue()
    main = FORK.Process(target=_start_and_vanish, args=(pid, late))
    main.start()
    other = psutil.Process(pid.get(timeout=60))
    try:
        deadline = time.monotonic() + 60
        while (
            main.exitcode is None and time.monotonic() < deadline
        ):  # `join` waits for the forked process too
            time.sleep(0.05)
        assert main.exitcode == -signal.SIGKILL
        other.resume()
        assert all_end([other])
    finally:
        main.kill()
        if other.is_running():
            other.kill()


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_processes_of_a_launcher_without_a_common_folder_are_refused(
    door: Door, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    variables = torchrun_variables(0, 1) if launcher == "torchrun" else {"SLURM_NTASKS": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for words in ((), ("resume=auto",)):  # which would look for a folder in each process by itself
        assert door(*AUTOENCODER, *TWO, *words) == (
            "error: several processes were started by a launcher; name their common folder: run_dir=outputs/NAME"
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", [COLORIZER, LATENT_DIFFUSION], ids=["colorizer", "latent_diffusion"])
def test_noise_timesteps_and_prompts_depend_on_the_place_in_the_global_batch(
    runs: RealRuns, door: Door, tmp_path: Path, method: tuple[str, ...]
) -> None:
    tiny_parts().save(tmp_path / "base")
    sizes = ("datamodule.size_px=32", "datamodule.batch_size=2", "module.prompt_dropout=0.5")
    quiet = ("trainer.accelerator=cpu", "trainer.enable_progress_bar=false")
    method = (*method, *SETTINGS, *sizes, *quiet, SIX, "callbacks.samples=null")
    runs.run(*method, *TWO, "run_dir=two")
    assert door(*method, TWICE, "run_dir=one") == 0
    assert_same_losses(tmp_path / "two", tmp_path / "one", num_steps=6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_with_another_number_of_processes(runs: RealRuns, door: Door, tmp_path: Path) -> None:
    runs.run(*AUTOENCODER, "trainer.max_steps=4", *TWO, "run_dir=two_one")
    to_one = ("trainer.strategy=auto", "trainer.devices=1", TWICE)
    assert door("resume=two_one", "trainer.max_steps=8", *to_one) == 0
    assert door(*AUTOENCODER, "trainer.max_steps=4", TWICE, "run_dir=one_two") == 0
    to_two = ("+trainer.strategy=ddp", "trainer.devices=2", "datamodule.batch_size=2")
    runs.run("resume=one_two", "trainer.max_steps=8", *to_two)
    assert door(*AUTOENCODER, "trainer.max_steps=8", TWICE, "run_dir=whole") == 0
    for found in ("two_one", "one_two"):
        assert_same_losses(tmp_path / found, tmp_path / "whole", num_steps=8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_when_one_process_is_killed_all_end_and_the_last_checkpoint_is_whole(
    runs: RealRuns, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    main = runs.start(*AUTOENCODER, *ENDLESS, *TWO, "run_dir=run")
    runs.wait_until(main, lambda: steps_done(run_dir) >= 4)
    (other,) = ranks_of(main)
    other.kill()
    assert main.wait(ENDS_WITHIN_S) == 1
    reason = "process 1 (exit code -9) of the 2 of this training has ended, so this one cannot go on; its own output says why"
    assert f"error: {reason} (details: run/train.log)" in runs.screen(main)
    assert status(run_dir) == f"failed: ConnectionError: {reason}"
    assert newest_whole(run_dir / "checkpoints") == run_dir / "checkpoints" / "last.ckpt"

    # The other way round nobody is left to say anything, but nobody is left over either.
    main = runs.start("resume=run", "trainer.max_steps=100001")
    done = steps_done(run_dir)
    runs.wait_until(main, lambda: steps_done(run_dir) >= done + 4)
    others = ranks_of(main)
    main.kill()
    assert len(others) == 1
    assert all_end(others)
    assert not is_held(run_dir)
    assert newest_whole(run_dir / "checkpoints") == run_dir / "checkpoints" / "last.ckpt"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_error_of_one_process_ends_all(runs: RealRuns, tmp_path: Path) -> None:
    """The first process alone draws pictures, into a folder that cannot be made."""
    (tmp_path / "file").touch()
    main = runs.start(*AUTOENCODER, SIX, *TWO, "run_dir=run", "callbacks.samples.folder=file/x")
    runs.wait_until(main, lambda: bool(ranks_of(main)))
    others = ranks_of(main)
    assert main.wait(RUNS_WITHIN_S) == 1
    assert all_end(others)
    assert f"error: Not a directory: {tmp_path}/file/x (details: run/train.log)" in runs.screen(main)
    assert status(tmp_path / "run").startswith("failed: NotADirectoryError")
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_that_lightning_starts_refuse_different_configs(runs: RealRuns, tmp_path: Path) -> None:
    main = runs.start(*AUTOENCODER, *TWO, "run_dir=run", "experiment_name=${oc.env:LOCAL_RANK,none}")
    assert main.wait(RUNS_WITHIN_S) == 1
    reason = (
        "the config of process 1 of 2 (counted from 0) differs from that of process 0: experiment_name is 1 instead of "
        "none; start all processes with the same command"
    )
    lines = runs.screen(main).splitlines()
    assert f"error: {reason} (details: run/train.log)" in lines
    assert f"error: process 1: {reason}" in lines
    assert not any(line.startswith("Traceback") for line in lines)
    assert status(tmp_path / "run") == f"failed: ValueError: {reason}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_of_a_launcher_refuse_different_configs_and_train_with_the_same(
    runs: RealRuns, door: Door, tmp_path: Path
) -> None:
    port = free_port()
    common = (*AUTOENCODER, SIX, *TWO)
    both = [
        runs.start(*common, "run_dir=differ", f"seed={rank}", **torchrun_variables(rank, port))
        for rank in range(2)
    ]
    assert [process.wait(RUNS_WITHIN_S) for process in both] == [1, 1]
    reason = "the config of process 1 of 2 (counted from 0) differs from that of process 0: datamodule.seed is 1 instead"
    assert f"error: {reason}" in runs.screen(both[0])
    assert f"error: process 1: {reason}" in runs.screen(both[1])

    port = free_port()
    both = [
        runs.start(*common, "run_dir=same", **torchrun_variables(rank, port)) for rank in reversed(range(2))
    ]
    assert [process.wait(RUNS_WITHIN_S) for process in both] == [0, 0], runs.screen(both[1])
    assert door(*AUTOENCODER, SIX, TWICE, "run_dir=one") == 0
    assert_same_losses(tmp_path / "same", tmp_path / "one", num_steps=6)
