"""The real door when a loader worker is killed: one line, exit code 1, a checkpoint to go on from, no process left."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 180


def children(pid: int) -> list[int]:
    """Processes that this one has started, by the system's table."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(status.parent.name))
    return found


def wait_for(condition, what: str):
    deadline = time.monotonic() + TIMEOUT_S
    while not (result := condition()):
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.1)
    return result


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_worker_ends_the_run_with_one_line(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split, num in (("train", 12), ("val", 2)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for number in range(num):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / split / f"{number}.png")
    run_dir = tmp_path / "run"
    command = [
        sys.executable, "train.py", "experiment=autoencoder", "datamodule=photos", f"datamodule.root={tmp_path}/photos",
        "datamodule.size_px=16", "datamodule.batch_size=2", "datamodule.num_workers=2",
        "trainer=cpu", "trainer.max_steps=100000",
        "trainer.val_check_interval=100000", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false",
        "callbacks.samples=null", "callbacks.last.every_n_steps=5", f"run_dir={run_dir}",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    workers: list[int] = []
    try:
        wait_for((run_dir / "checkpoints" / "last.ckpt").exists, "the first checkpoint")
        workers = children(process.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 1
        error = output.strip().splitlines()[-1]
        assert re.match(
            rf"error: loader worker \d \(pid {workers[0]}\) was killed by SIGKILL (while|after) reading sample \d+ of "
            r"epoch \d+, '/.*/train/\d+.png'; if memory ran out, lower .*; resume=auto continues the run",
            error,
        )
        assert "Traceback" not in output
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the end of the workers")
    finally:
        process.kill()
        for pid in workers:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
        process.wait(30)
