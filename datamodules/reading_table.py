"""What each loader worker reads at the moment, written where the main process can see it."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.data import get_worker_info

NO_EPOCH = -1
PARENT_CHECK_S = 1.0


@dataclass(frozen=True)
class Reading:
    """The last sample that a worker began to read.

    Args:
        epoch: Its epoch, None in evaluation.
        index: Its position in the data set; None if there was none yet.
        busy_s: For how long it has been reading it, 0 if it is done.
    """

    epoch: int | None
    index: int | None
    busy_s: float


class ReadingTable:
    """One row of shared memory for each worker; a worker writes its own row alone, so no lock is needed.

    Args:
        num_workers: Rows.
    """

    def __init__(self, num_workers: int) -> None:
        # Epoch, index, start in nanoseconds, and whether it is still being read.
        self._rows = torch.full((num_workers, 4), -1, dtype=torch.int64).share_memory_()

    def reading(self, worker: int) -> Reading:
        """What a worker reads, or read last."""
        epoch, index, since_ns, busy = self._rows[worker].tolist()
        return Reading(
            epoch=None if epoch == NO_EPOCH else epoch,
            index=None if index < 0 else index,
            busy_s=(time.monotonic_ns() - since_ns) / 1e9 if busy == 1 else 0.0,
        )

    @contextmanager
    def noted(self, epoch: int | None, index: int) -> Iterator[None]:
        """Notes in this worker's row that it reads a sample."""
        worker = get_worker_info()
        assert worker is not None, "only loader workers write to the table"
        # numpy writes to the same memory at a tenth of the cost of a tensor's item (0.5 us).
        row = self._rows.numpy()[worker.id]
        row[:] = (NO_EPOCH if epoch is None else epoch, index, time.monotonic_ns(), 1)
        try:
            yield
        finally:
            row[3] = 0


def die_with_parent() -> None:
    """Starts a thread that ends this process when its parent is gone.

    torch's own check runs between two samples only: a worker that hangs in a read, or whose full pipe nobody empties,
    would stay for ever after the main process was killed.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent_watch", daemon=True).start()
