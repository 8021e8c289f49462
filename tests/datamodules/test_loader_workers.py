import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from datamodules.loader_workers import CAN_TELL_SENDERS, obey_main_process, signals_held

pytestmark = pytest.mark.skipif(not CAN_TELL_SENDERS, reason="the system cannot tell who sent a signal")


class Sleeper(Dataset[int]):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        time.sleep(self.seconds if index else 0)
        return os.getpid()


def start(_number: int) -> None:
    obey_main_process()


def start_iterating(seconds: float) -> Any:
    with signals_held():
        return iter(DataLoader(Sleeper(seconds), batch_size=1, num_workers=1, worker_init_fn=start))


@pytest.fixture
def thread_of_a_library() -> Iterator[None]:
    """A thread in each forked process, started by a library before ours has a say, as wandb does."""
    active = True

    def start_thread() -> None:
        if active:
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()

    os.register_at_fork(after_in_child=start_thread)  # Python has no way to take it back
    yield
    active = False


@pytest.mark.usefixtures("thread_of_a_library")
def test_a_worker_outlives_signals_of_others_and_ends_when_the_main_process_says_so() -> None:
    batches = start_iterating(0.01)
    worker = int(next(batches))
    for name in ("TERM", "INT", "TERM"):
        subprocess.run(["kill", f"-{name}", str(worker)], check=True, timeout=30)
    assert {int(next(batches)) for _ in range(10)} == {worker}

    stuck = start_iterating(600)
    next(stuck)
    (process,) = stuck._workers
    process.terminate()
    process.join(20)
    code = process.exitcode
    process.kill()  # or a failure here would be a hang at the end of the suite
    stuck._workers_status[0] = False  # so that the loader's own end does not wait for it
    assert code == 0


def test_a_signal_that_comes_while_workers_start_is_handled_after_it() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    try:
        with signals_held():
            signal.raise_signal(signal.SIGTERM)
            assert came == []
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
