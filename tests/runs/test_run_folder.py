"""The run folder from the first step to the last: files, resuming, sweeps and failures."""

import csv
import json
import logging
import os
import re
import resource
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from reliability.checkpoint_io import read_checkpoint
from reliability.stop_signals import StopSignals
from runs.config import load_config
from runs.folder import run_folder, status
from runs.resume import resumed_job
from tests.runs.conftest import TINY


def test_a_run_leaves_its_files_and_can_be_rebuilt_and_resumed(door, tmp_path: Path, capfd) -> None:
    run_dir = tmp_path / "run"
    assert door(*TINY, "run_dir=run", "trainer.val_check_interval=2") == 0
    assert status(run_dir) == "finished"
    assert "val/loss" in json.loads((run_dir / "metrics.json").read_text())
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["packages"]["torch"]

    from runs.training import build_module

    config = load_config(run_dir)
    assert "${" not in (run_dir / "config.yaml").read_text()
    assert build_module(config).vae.config.block_out_channels == [8, 8, 8]

    # each message once on the screen
    err = capfd.readouterr().err
    assert err.count("Autoencoder:") == 1
    assert "Tip" not in err
    assert "GPU available" not in err

    assert door("resume=run") == "error: run is finished; train it further with trainer.max_steps above 2"
    assert door(*TINY, "run_dir=run").startswith(f"error: {run_dir} exists already; continue that run")
    assert "chooses a group" in door("resume=run", "trainer=cpu")
    assert "unknown key 'trainer.max_step'; did you mean 'trainer.max_steps'?" in door(
        "resume=run", "trainer.max_step=3"
    )
    assert door("resume=run", "trainer.max_steps=fast") == "error: trainer.max_steps is 'fast', expected int"
    assert door("resume=run", "trainer.max_steps=3") == 0
    assert "resumed at step 2" in (run_dir / "train.log").read_text()
    assert load_config(run_dir)["trainer"]["max_steps"] == 3

    # fewer steps than were made, in the folder or from its checkpoint
    beyond = "error: the checkpoint is at step 3, beyond trainer.max_steps=2; set trainer.max_steps above 3"
    assert door("resume=run", "trainer.max_steps=2").startswith(beyond)
    assert door(*TINY, "run_dir=beyond", "ckpt_path=run/checkpoints/last.ckpt").startswith(beyond)

    # a moved folder and a start from its checkpoint in a new one
    moved = run_dir.rename(run_dir.with_name("moved"))
    assert door("resume=moved", "trainer.max_steps=4") == 0
    assert not run_dir.exists()
    start = f"ckpt_path={moved}/checkpoints/last.ckpt"
    assert door(*TINY, "run_dir=other", start, "trainer.max_steps=5") == 0
    assert status(run_dir.with_name("other")) == "finished"


def test_automatic_resume_takes_the_unfinished_run_with_the_same_config(door, tmp_path: Path, caplog) -> None:
    assert door(*TINY, "resume=auto") == 0
    (first,) = (tmp_path / "outputs/autoencoder").iterdir()
    (first / "status").write_text("stopped: SIGTERM\n")
    assert door(*TINY, "resume=auto", "trainer.max_steps=3") == 0
    assert "continuing" in (first / "train.log").read_text()
    assert status(first) == "finished"
    (first / "status").write_text("stopped: SIGTERM\n")
    assert "unfinished" not in caplog.text
    assert door(*TINY, "resume=auto", "trainer.gradient_clip_val=0.5") == 0
    assert (
        f"{first.relative_to(tmp_path)} is unfinished, but its trainer.gradient_clip_val differs from this command's, "
        f"so a new run starts; to go on with that one: python train.py resume={first.relative_to(tmp_path)}"
    ) in caplog.text
    assert len(list((tmp_path / "outputs/autoencoder").iterdir())) == 2


def test_a_damaged_checkpoint_is_passed_over_or_refused(door, tmp_path: Path, capfd) -> None:
    command = (*TINY, "run_dir=run", "resume=auto", "callbacks.last.every_n_steps=1")
    assert door(*command) == 0
    last, log = tmp_path / "run/checkpoints/last.ckpt", tmp_path / "run/train.log"
    assert door(*command) == 0  # nothing left to do
    assert "run is finished; there is nothing left to do" in capfd.readouterr().err

    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    (tmp_path / "run/status").write_text("stopped: SIGTERM\n")
    refusal = door("resume=run")
    assert refusal.startswith(
        f"error: Checkpoint {last} is damaged: its SHA-256 differs from last.ckpt.sha256"
    )
    assert door(*command, "trainer.max_steps=3") == 0
    assert f"goes on from {last.with_name('previous.ckpt')}, step 1." in log.read_text()
    assert "resumed at step 1" in log.read_text()
    assert door("resume=run", f"ckpt_path={last.with_name('previous.ckpt')}", "trainer.max_steps=4") == 0
    assert "resumed at step 2" in log.read_text()


def test_a_full_disk_costs_neither_checkpoint_nor_curve(door, tmp_path: Path) -> None:
    command = (*TINY, "run_dir=run", "trainer.log_every_n_steps=1", "callbacks.last.every_n_steps=1")
    assert door(*command, "trainer.limit_val_batches=1") == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (last.stat().st_size - 1000, limits[1]))
    try:
        error = door("resume=run", "trainer.max_steps=4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    pattern = rf"error: Checkpoint {last} was not written \(File too large\): it needs \d+ bytes, \d+ bytes are free"
    assert re.match(pattern, error)
    assert status(tmp_path / "run").startswith("failed: OSError: [Errno 27] Checkpoint")
    assert read_checkpoint(last)["global_step"] == 2
    assert door("resume=run", "trainer.max_steps=4") == 0
    with open(tmp_path / "run/metrics.csv", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == [0, 1, 2, 3]


def test_a_run_killed_after_its_last_step_ends_with_all_its_figures(door, tmp_path: Path) -> None:
    command = (*TINY, "run_dir=run", "resume=auto", "trainer.val_check_interval=2")
    assert door(*command) == 0
    figures = tmp_path / "run/metrics.json"
    whole = json.loads(figures.read_text())
    figures.unlink()
    (tmp_path / "run/status").write_text("running\n")
    assert door(*command) == 0
    assert json.loads(figures.read_text()) == whole


def test_a_run_killed_before_its_config_was_written_starts_there(door, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/train.log").touch()
    (tmp_path / "run/.lock").touch()
    (tmp_path / "run/status").write_text("running\n")
    assert door(*TINY, "run_dir=run", "resume=auto") == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other/photo.png").touch()
    assert "other exists already" in door(*TINY, "run_dir=other", "resume=auto")
    (tmp_path / "export").mkdir()
    (tmp_path / "export/config.yaml").write_text("seed: 1\n")
    assert "export exists already; choose another run_dir" in str(door(*TINY, "run_dir=export"))


def test_a_failing_job_does_not_lose_the_others(door, tmp_path: Path, capsys) -> None:
    assert door("-m", *TINY, "module.optimizer.lr=-1,1e-3", "trainer.val_check_interval=2") == 1
    table = capsys.readouterr().out.strip().splitlines()
    assert table[0].split() == ["job", "overrides", "val/loss", "status"]
    assert table[1].endswith("failed: Invalid learning rate: -1")
    assert table[2].endswith("finished")
    folders = sorted((tmp_path / "outputs/autoencoder/sweeps").glob("*/*/status"))
    assert [f.read_text().split(":")[0].strip() for f in folders] == ["failed", "finished"]


def test_data_errors_name_the_log(door, tmp_path: Path, capfd) -> None:
    message = door(*TINY, "datamodule=photos", "datamodule.root=nowhere", "run_dir=run")
    assert "nowhere" in message
    assert message.endswith("(details: run/train.log)")
    assert status(tmp_path / "run").startswith("failed: ")
    assert "Traceback" in (tmp_path / "run/train.log").read_text()
    assert "Traceback" not in capfd.readouterr().err
    assert door("resume=run") == (
        "error: run wrote no checkpoint yet, so there is nothing to continue; start it again without resume= and with "
        "run_dir=run"
    )

    assert door(*TINY, "run_dir=run") == 0
    assert status(tmp_path / "run") == "finished"
    differs = "run holds a run with another config, datamodule.size_px=32 where this command has datamodule.size_px=16"
    assert differs in door(*TINY, "run_dir=run", "resume=auto", "datamodule.size_px=16")
    unlike = ("trainer.log_every_n_steps=7", "callbacks.samples=null", "datamodule.num_workers=1")
    assert door(*TINY, "run_dir=run", "resume=auto", *unlike) == 0
    (tmp_path / "run/checkpoints/last.ckpt").rename(tmp_path / "run/checkpoints/previous.ckpt")
    assert resumed_job(Path("run"), ["trainer.max_steps=3"]).resume_from == tmp_path / "run/checkpoints"


def test_a_folder_is_held_by_one_run_and_marked_at_the_end(tmp_path: Path) -> None:
    config = {"run_dir": str(tmp_path / "run")}
    with pytest.raises(KeyError), run_folder(config) as folder:  # noqa: PT012
        folder.claim()
        logging.getLogger("runs").info("hello")
        with (
            pytest.raises(BlockingIOError, match="another process is training"),
            run_folder(config, exists=True),
        ):
            pass
        raise KeyError("a bug")
    assert status(folder.path) == "failed: KeyError: 'a bug'"
    assert "hello" in (folder.path / "train.log").read_text()
    with pytest.raises(FileExistsError, match="exists already; choose another run_dir"), run_folder(config):
        pass


def test_a_run_with_a_checkpoint_changes_when_it_is_claimed(tmp_path: Path) -> None:
    config = {"run_dir": str(tmp_path)}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.ckpt").touch()
    (tmp_path / "status").write_text("finished\n")
    with pytest.raises(KeyError), run_folder(config, exists=True):
        raise KeyError("refused")
    assert status(tmp_path) == "finished"
    assert not (tmp_path / "config.yaml").exists()
    with pytest.raises(KeyError), run_folder(config, exists=True) as folder:  # noqa: PT012
        folder.claim()
        assert status(tmp_path) == "running"
        raise KeyError("a bug")
    assert status(tmp_path) == "failed: KeyError: 'a bug'"
    assert load_config(tmp_path)["run_dir"] == str(tmp_path)


def test_a_refused_resume_leaves_the_run_as_it_was(door, tmp_path: Path) -> None:
    assert door(*TINY, "run_dir=run", "callbacks.samples=null") == 0
    names = ("config.yaml", "environment.json", "metrics.csv", "metrics.json", "status")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    refusals = {
        "module.vae.latent_channels=8": "the checkpoint does not fit",
        "module.optimizer.lr=-1": "Invalid learning rate",
        "trainer.accumulate_grad_batches=2": "accumulate_grad_batches",
    }
    for word, sentence in refusals.items():
        assert sentence in str(door("resume=run", "trainer.max_steps=3", word)), word
        assert {name: (tmp_path / "run" / name).read_bytes() for name in names} == before, word
    assert door("resume=run", "trainer.max_steps=3") == 0
    assert load_config(tmp_path / "run")["trainer"]["max_steps"] == 3
    assert status(tmp_path / "run") == "finished"


def test_a_saved_config_takes_checked_overrides_alone(tmp_path: Path) -> None:
    OmegaConf.save({"run_dir": "elsewhere", "trainer": {}, "module": None}, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="~seed cannot change a saved run"):
        resumed_job(tmp_path, ["~seed"])
    with pytest.raises(ValueError, match="is a sweep"):
        resumed_job(tmp_path, ["seed=1,2"])
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="cannot be read"):
        load_config(tmp_path)


def test_a_run_whose_checkpoints_are_gone_never_starts_over_by_itself(door, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = (*TINY, "run_dir=run", "resume=auto", "trainer.log_every_n_steps=1", "trainer.max_steps=3")
    command = (*command, "trainer.limit_val_batches=0", "callbacks.last.every_n_steps=2")
    assert door(*command) == 0
    curve = (run_dir / "metrics.csv").read_text()
    for path in (run_dir / "checkpoints").iterdir():
        path.unlink()
    (run_dir / "checkpoints/backup.ckpt").write_bytes(b"of somebody else")
    assert door(*command) == 0  # it is finished: nothing is left to do
    (run_dir / "status").write_text("stopped: SIGTERM\n")
    assert door(*command) == (
        "error: the curve of run reaches step 3 but no checkpoint is there; restore one, choose another run_dir, "
        "or delete its metrics.csv to start over"
    )
    assert (run_dir / "metrics.csv").read_text() == curve
    assert status(run_dir) == "stopped: SIGTERM"

    # killed before its first checkpoint: it reached step 1 only
    (run_dir / "metrics.csv").write_text("".join(curve.splitlines(keepends=True)[:3]))
    assert door(*command) == 0
    assert (run_dir / "metrics.csv").read_text().count("\n") == curve.count("\n")


def test_a_new_config_that_cannot_be_written_leaves_no_finished_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with run_folder({"run_dir": str(run_dir), "length": 1}) as folder:
        folder.claim()
    assert status(run_dir) == "finished"
    (run_dir / "environment.json").unlink()
    (run_dir / "config.yaml").unlink()
    (run_dir / "config.yaml").mkdir()  # so that writing it fails
    with (
        pytest.raises(OSError, match=r"config\.yaml"),
        run_folder({"run_dir": str(run_dir)}, exists=True) as folder,
    ):
        folder.claim()
    assert status(run_dir).startswith("failed: IsADirectoryError: ")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_folder_is_made_is_noted(signum, tmp_path: Path, monkeypatch) -> None:
    """The commit is asked for last; this git answers with a signal to the process that asks."""
    git = tmp_path / "bin/git"
    git.parent.mkdir()
    git.write_text(f"#!/bin/sh\nkill -{signum} $PPID\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{git.parent}{os.pathsep}{os.environ['PATH']}")
    run_dir = tmp_path / "run"
    stopped = SystemExit if signum == signal.SIGTERM else KeyboardInterrupt
    with pytest.raises(stopped), StopSignals(), run_folder({"run_dir": str(run_dir)}) as folder:
        folder.claim()
    assert status(run_dir) == f"stopped: {'SIGTERM' if signum == signal.SIGTERM else 'Ctrl-C'}"


def test_a_signal_that_a_library_turns_into_an_error_of_its_own_stops_the_run(
    door, tmp_path: Path, monkeypatch
) -> None:
    """As OmegaConf does, whose `finally` fails on a node that is half made."""

    def to_yaml(_: object) -> str:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            raise AttributeError("'NoneType' object has no attribute '_invalidate_flags_cache'") from None
        raise AssertionError("the signal should have come before")

    monkeypatch.setattr("runs.folder.OmegaConf.to_yaml", to_yaml)
    assert door(*TINY, "run_dir=run") == 143
    assert status(tmp_path / "run") == "stopped: SIGTERM"
