import os
import signal
import subprocess
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from datamodules.worker_signals import outlive_group_signals


class Sleeper(Dataset[int]):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        time.sleep(self.seconds if index else 0)
        return os.getpid()


def start(_number: int) -> None:
    outlive_group_signals()


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system cannot tell who sent a signal")
def test_a_worker_outlives_signals_of_others_and_ends_when_the_main_process_says_so() -> None:
    batches = iter(DataLoader(Sleeper(0.01), batch_size=1, num_workers=1, worker_init_fn=start))
    worker = int(next(batches))
    for name in ("TERM", "INT", "TERM"):
        subprocess.run(["kill", f"-{name}", str(worker)], check=True, timeout=30)
    assert {int(next(batches)) for _ in range(10)} == {worker}

    stuck = iter(DataLoader(Sleeper(600), batch_size=1, num_workers=1, worker_init_fn=start))
    next(stuck)
    (process,) = stuck._workers
    process.terminate()
    process.join(20)
    assert process.exitcode == 0
    stuck._workers_status[0] = False  # so that the loader's own end does not wait for it
