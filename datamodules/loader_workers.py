"""What happens in a loader worker: which sample it reads, which signals it heeds, and that it ends with its parent."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.forkserver import get_inherited_fds
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import get_worker_info

# Without it (macOS) a worker cannot tell who sent a signal, and SIGTERM ends it.
CAN_TELL_SENDERS = hasattr(signal, "sigtimedwait")
PARENT_CHECK_S = 1.0
_NONE = -1


@dataclass(frozen=True)
class Reading:
    """The last sample that a worker began to read."""

    epoch: int | None  # None in evaluation
    index: int | None  # its position in the data set; None if there was none yet
    busy_s: float  # for how long it has been reading it, 0 if it is done


class ReadingTable:
    """One row of shared memory for each worker; a worker writes its own row alone, so no lock is needed."""

    def __init__(self, num_workers: int) -> None:
        # Epoch, index, start in nanoseconds, and whether it is still being read.
        self._rows = torch.full((num_workers, 4), _NONE, dtype=torch.int64).share_memory_()

    def reading(self, worker: int) -> Reading:
        """What a worker reads, or read last."""
        epoch, index, since_ns, busy = self._rows[worker].tolist()
        return Reading(
            epoch=None if epoch == _NONE else epoch,
            index=None if index == _NONE else index,
            busy_s=(time.monotonic_ns() - since_ns) / 1e9 if busy == 1 else 0.0,
        )

    @contextmanager
    def noted(self, epoch: int | None, index: int) -> Iterator[None]:
        """Notes in this worker's row that it reads a sample."""
        worker = get_worker_info()
        assert worker is not None, "only loader workers write to the table"
        # numpy writes to the same memory at a tenth of the cost of a tensor's item (0.5 us).
        row = self._rows.numpy()[worker.id]
        row[:] = (_NONE if epoch is None else epoch, index, time.monotonic_ns(), 1)
        try:
            yield
        finally:
            row[3] = 0


@contextmanager
def signals_held() -> Iterator[None]:
    """Starts workers with SIGTERM and Ctrl-C blocked; this process gets what came meanwhile at the end of the block.

    A new process inherits it before it runs a line of Python, and so do threads that libraries start in it after a
    fork (wandb does), for which `obey_main_process` would come too late.
    """
    if not CAN_TELL_SENDERS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_main_process() -> None:
    """Lets this worker, started under `signals_held`, end when the main process ends or says so, and for nothing else.

    SIGTERM or Ctrl-C may reach the whole process group: from a terminal, `timeout`, a SLURM step. The main process
    completes its step first, for which it may wait for this worker, and several processes must not stop at different
    steps. SIGTERM from the main process, which torch and Python send at their end, ends the worker at once, even in a
    read that hangs. When the main process was killed, torch's own check ends a worker between two samples only, and
    never if the main process was gone before torch first looked at it, or if a server forks the workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    assert main is not None, "this is for loader workers"

    def watch() -> None:
        while not _is_gone(main):
            if not CAN_TELL_SENDERS:
                time.sleep(PARENT_CHECK_S)
                continue
            sent = signal.sigtimedwait({signal.SIGTERM}, PARENT_CHECK_S)
            if sent is not None and sent.si_pid == main.pid:
                os._exit(0)
        os._exit(1)

    threading.Thread(target=watch, name="main_process_watch", daemon=True).start()


def _is_gone(main: BaseProcess) -> bool:
    """Whether the main process has ended, be it before this worker ran its first line.

    Its id was handed over to the worker, so another parent tells. The parent of workers that a server forks is the server,
    which lives as long as they do; there the end of a pipe tells. It would not do for all: workers forked by the main
    process hold each other's pipes open. Linux's PR_SET_PDEATHSIG would end workers with the thread that started them, and
    with the server instead of the main process.
    """
    served = get_inherited_fds() is not None
    return os.getppid() != main.pid and not (served and main.is_alive())
