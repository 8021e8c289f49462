"""Whole trainings with logger=wandb: the offline record holds what metrics.csv holds, and how the run ended."""

import csv
import getpass
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

wandb = pytest.importorskip("wandb")

from callbacks.wandb_logger import STEP_KEY  # noqa: E402
from runs.folder import status  # noqa: E402
from tests.runs.conftest import TINY, Door  # noqa: E402
from tests.runs.real_processes import ENDS_WITHIN_S, TWO, RealRuns  # noqa: E402
from tests.runs.same_state import steps_done  # noqa: E402
from tests.wandb_record import history, records  # noqa: E402

KEY = "0123456789" * 4
WANDB = (
    *TINY,
    "logger=wandb",
    "logger.wandb.mode=offline",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=2",
    "callbacks.last.every_n_steps=2",
    "callbacks.samples.num_images=1",
    "datamodule.val_batch_size=16",
)


@pytest.fixture(autouse=True)
def own_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Settings of this machine stay outside, and no client is left."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[RealRuns]:
    real = RealRuns(tmp_path)
    yield real
    real.close()


def files(run_dir: Path) -> list[Path]:
    """The offline records of a run, oldest first, once the client has written them."""
    wandb.teardown()
    return sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))


def exit_codes(run_dir: Path) -> list[int]:
    return [r.exit.exit_code for path in files(run_dir) for r in records(path) if r.HasField("exit")]


def csv_rows(run_dir: Path) -> list[dict[str, float]]:
    with open(run_dir / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def wandb_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of all processes of a run, as rows of metrics.csv; pictures are left out."""
    found = [row for path in files(run_dir) for row in history(path) if "samples" not in row]
    return [{"step": row.pop(STEP_KEY)} | {k: v for k, v in row.items() if k[0] != "_"} for row in found]


def test_the_record_equals_the_curve_and_goes_on_after_a_resume(door: Door, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert door(*WANDB, "trainer.max_steps=4", "run_dir=run") == 0
    identity = (run_dir / "wandb_id").read_text().strip()
    assert wandb_rows(run_dir) == csv_rows(run_dir)
    assert door("resume=run", "trainer.max_steps=6") == 0
    assert [path.name for path in files(run_dir)] == [f"run-{identity}.wandb"] * 2
    assert exit_codes(run_dir) == [0, 0]
    # The shorter run's test is a row of its own, which metrics.csv drops for the one of the longer run.
    tests = [row for row in wandb_rows(run_dir) if "test/psnr" in row]
    assert [row["step"] for row in tests] == [4, 6]
    assert [row for row in wandb_rows(run_dir) if row != tests[0]] == csv_rows(run_dir)
    assert [row["step"] for row in csv_rows(run_dir)] == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6]
    pictures = [row[STEP_KEY] for path in files(run_dir) for row in history(path) if "samples" in row]
    assert pictures == [1, 3, 5]


def test_the_record_names_neither_machine_nor_user_nor_key(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert door(*WANDB, f"run_dir={tmp_path}/run") == 0
    run_dir = tmp_path / "run"
    words = (socket.gethostname(), getpass.getuser(), str(tmp_path), str(Path.home()), str(Path.cwd()), KEY)
    private = re.compile("|".join(rf"(?<![\w-]){re.escape(word)}(?![\w-])" for word in words))
    (path,) = files(run_dir)
    for record in records(path):
        assert not private.search(str(record)), record
    sent = [p for p in path.parent.glob("files/**/*") if p.is_file()]
    assert [p.suffix for p in sent] == [".png"]
    for p in run_dir.rglob("*"):
        assert not (p.is_file() and KEY.encode() in p.read_bytes()), p


def test_a_crash_marks_the_run_failed(door: Door, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert door(*WANDB, "run_dir=run", "callbacks.samples.folder=file/x") != 0
    assert exit_codes(tmp_path / "run") == [1]


def test_a_run_that_is_refused_before_it_starts_leaves_no_record(door: Door, tmp_path: Path) -> None:
    assert "expected at least 1" in str(door(*WANDB, "run_dir=run", "callbacks.last.every_n_steps=0"))
    assert files(tmp_path / "run") == []


@pytest.mark.slow
def test_each_job_of_a_sweep_is_a_run_with_its_own_end(door: Door, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    code = door("-m", *WANDB, "hydra.sweep.dir=sweep", "callbacks.samples.folder=file/x,folder/x")
    assert code == 1
    first, second = (tmp_path / "sweep" / number for number in "01")
    assert (exit_codes(first), exit_codes(second)) == ([1], [0])
    assert (first / "wandb_id").read_text() != (second / "wandb_id").read_text()
    assert wandb_rows(second) == csv_rows(second)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_network_the_run_is_offline_and_finishes(runs: RealRuns, tmp_path: Path) -> None:
    dead = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    screen = runs.run(*WANDB, "logger.wandb.mode=auto", "run_dir=run", **dead)
    assert re.search(r"warning: W&B is offline: .+; upload this run later with `wandb sync`\n", screen)
    assert KEY not in screen
    run_dir = tmp_path / "run"
    assert exit_codes(run_dir) == [0]
    assert wandb_rows(run_dir) == csv_rows(run_dir)
    assert status(run_dir) == "finished"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_sigterm_and_sigkill_no_row_is_written_twice(runs: RealRuns, tmp_path: Path) -> None:
    """The last process sees a record that was cut, another that was ended, and steps that come a second time."""
    run_dir = tmp_path / "run"
    endless = (
        *WANDB,
        "run_dir=run",
        "resume=auto",
        "callbacks.last.every_n_steps=5",
        "callbacks.samples=null",
    )
    main = runs.start(*endless, "trainer.max_steps=100000", "trainer.val_check_interval=20")
    runs.wait_until(main, lambda: steps_done(run_dir) >= 7)
    main.kill()
    main.wait()
    main = runs.start(*endless, "trainer.max_steps=100000", "trainer.val_check_interval=20")
    done = steps_done(run_dir)
    runs.wait_until(main, lambda: steps_done(run_dir) >= done + 8)
    main.terminate()
    assert main.wait(ENDS_WITHIN_S) == 143
    killed, stopped = files(run_dir)
    ends = [[r for r in records(path) if r.HasField("exit")] for path in (killed, stopped)]
    assert [[r.exit.exit_code for r in end] for end in ends] == [[], [143]]
    assert any(r.HasField("preempting") for r in records(stopped))

    runs.run("resume=run", f"trainer.max_steps={steps_done(run_dir) + 3}")
    assert exit_codes(run_dir) == [143, 0]
    written = Counter((row["step"], "val/loss" in row) for row in wandb_rows(run_dir))
    assert set(written.values()) == {1}
    ours, theirs = (
        {(row["step"], "val/loss" in row): without_speed(row) for row in rows}
        for rows in (wandb_rows(run_dir), csv_rows(run_dir))
    )
    assert all(theirs[key] == row for key, row in ours.items())
    assert ours.keys() >= {
        key for key in theirs if key[0] >= done
    }  # the kill may cost W&B rows before it alone
    numbers = [row["_step"] for path in files(run_dir) for row in history(path)]
    assert numbers == sorted(set(numbers))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_two_processes_the_first_one_alone_is_the_run(runs: RealRuns, tmp_path: Path) -> None:
    runs.run(*WANDB, *TWO, "run_dir=run")
    run_dir = tmp_path / "run"
    assert exit_codes(run_dir) == [0]
    assert wandb_rows(run_dir) == csv_rows(run_dir)


def without_speed(row: dict[str, float]) -> dict[str, float]:
    """A row without what depends on the process that wrote it."""
    return {k: v for k, v in row.items() if not k.startswith("speed/")}
