"""`python train.py` as processes of their own, none of which outlives its test."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.runs.conftest import ROOT

# An idle machine needs a tenth of these; this one may be busy.
RUNS_WITHIN_S, STARTS_WITHIN_S, ENDS_WITHIN_S = 300, 240, 120
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")

Condition = Callable[[], bool]


class RealRuns:
    """Starts trainings in one folder, each in a process group of its own, and ends what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        screen = self.folder / f"screen{len(self._started)}.log"
        with open(screen, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *arguments],
                cwd=self.folder,
                env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | variables,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._started.append((process, screen))
        return process

    def screen(self, process: subprocess.Popen[bytes]) -> str:
        """What the process and those it started have written to the terminal."""
        return next(path for known, path in self._started if known is process).read_text(errors="replace")

    def run(self, *arguments: str, **variables: str) -> str:
        """Trains to the end and returns the screen."""
        process = self.start(*arguments, **variables)
        code = process.wait(RUNS_WITHIN_S)
        assert code == 0, self.screen(process)
        return self.screen(process)

    def wait_until(self, process: subprocess.Popen[bytes], condition: Condition) -> None:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not condition():
            assert process.poll() is None, self.screen(process)
            assert time.monotonic() < deadline, self.screen(process)
            time.sleep(0.05)

    def close(self) -> None:
        for process, _ in self._started:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            finally:
                process.wait(60)


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The further processes of a training that Lightning started."""
    found = psutil.Process(process.pid).children()
    return [child for child in found if any(word.endswith("train.py") for word in words_of(child))]


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process; none of one that has ended since it was listed."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # a zombie too
        return []


def all_end(processes: list[psutil.Process]) -> bool:
    """Whether the processes are gone, or soon are."""
    _, alive = psutil.wait_procs(processes, timeout=ENDS_WITHIN_S)
    return not alive


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def torchrun_variables(rank: int, port: int, world_size: int = 2) -> dict[str, str]:
    """What torchrun and its like set for each process of one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
