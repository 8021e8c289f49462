"""The soak itself, shortened, and the long run for leaks; `make soak` does the whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.endurance import Endurance, endure
from benchmarks.soak import SoakOptions, report, soak
from benchmarks.soak_lane import RUN_VARIABLE, differences, end_survivors


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_trainings_end_bitwise_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lanes, found = soak(SoakOptions(num_kills=2, folder=str(tmp_path)))
    assert found == []
    assert sum(len(lane.kills) for lane in lanes) >= 2
    assert len(report(lanes).rows) >= 2
    # The comparison sees what it should: two trainings are not equal.
    assert differences(lanes[0].undisturbed, lanes[1].undisturbed)


FORKS = "import os, time; os.fork(); os.fork() and os._exit(0); time.sleep(600)"
STARTS = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"


@pytest.mark.parametrize(
    ("code", "number"), [(FORKS, 2), (STARTS, 1), ("", 0)], ids=["forked", "started", "none"]
)
def test_processes_that_a_run_leaves_are_counted_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, number: int
) -> None:
    monkeypatch.setattr("benchmarks.soak_lane.WORKERS_END_WITHIN_S", 1)
    other = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=mark(tmp_path / "b")
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=mark(tmp_path / "a"))
    assert [end_survivors(tmp_path / "a"), end_survivors(tmp_path / "a")] == [number, 0]
    assert other.poll() is None
    other.communicate(b"\n", timeout=60)
    assert other.returncode == 0


def mark(run_dir: Path) -> dict[str, str]:
    return os.environ | {RUN_VARIABLE: str(run_dir)}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_2000_steps_neither_grow_nor_leak_nor_slow_down(tmp_path: Path) -> None:
    assert endure(2000, tmp_path).faults() == []


def test_faults_of_a_long_run_are_named() -> None:
    bad = Endurance(growth_mib=25.0, slowdown=0.2, new_files=3, new_threads=0, steps_per_s=10.0)
    assert bad.faults() == [
        "memory grew by 25.0 MiB, allowed 20",
        "the last tenth is 20.0 % slower than the first, allowed 10 %",
        "3 more open files and 0 more threads",
    ]


def test_too_few_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_steps is 20; expected at least 200"):
        endure(20, tmp_path)
    with pytest.raises(ValueError, match="num_kills is 0; expected at least 1"):
        soak(SoakOptions(num_kills=0, folder=str(tmp_path)))
