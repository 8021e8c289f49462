"""A data loader whose failures are one clear sentence, and that leaves no worker behind."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn, TypeVar

from torch.utils.data import DataLoader, get_worker_info

from datamodules.decode import UnreadableImage
from datamodules.keyed_dataset import KeyedDataset, collate
from datamodules.loader_workers import ReadingTable, obey_main_process, signals_held

log = logging.getLogger(__name__)

NUM_KEPT = 3
KILL_GRACE_S = 2.0
WATCHDOG_PERIOD_S = 0.5

T = TypeVar("T")


class SkippedSamples:
    """Samples that a loader handed out, and those of them that stand for an unreadable file.

    Counted in the main process, where the batches arrive: exact for any number of workers, whatever they have prefetched.
    """

    def __init__(self) -> None:
        self.num_read = 0  # samples handed out
        self.num_skipped = 0  # those among them in whose place another sample stands
        self._reasons: dict[str, None] = {}  # what is wrong with each file, in the order of their last skip

    @property
    def last(self) -> list[str]:
        """The files that were skipped last, with their reasons."""
        return list(self._reasons)[-NUM_KEPT:]

    def count(self, skipped: Sequence[str]) -> None:
        """Takes the reasons of one batch, "" where the sample is its own; each file is logged once."""
        self.num_read += len(skipped)
        for reason in filter(None, skipped):
            self.num_skipped += 1
            if reason not in self._reasons:
                log.warning("cannot read %s; the next sample takes its place", reason)
            self._reasons.pop(reason, None)
            self._reasons[reason] = None


class LoaderError(OSError):
    """A loader worker was killed, hangs, or could not go on."""


class WatchedLoader(DataLoader[Any]):
    """Batches of a `KeyedDataset`; takes the reasons of skipped samples out of them and counts them.

    A worker that dies, or gives no batch within `timeout` seconds (0 = for ever), is a `LoaderError` that names the
    worker and the last file it was given; all workers are then killed. Workers end when the main process does, however
    it ends. Without workers no timeout can help. The other options are those of torch's DataLoader.
    """

    def __init__(
        self, dataset: KeyedDataset, *, num_workers: int = 0, timeout: float = 0.0, **options: Any
    ) -> None:
        self.samples, self.timeout_s = dataset, timeout
        self.skipped = SkippedSamples()
        self.table = ReadingTable(num_workers) if num_workers > 0 else None
        if self.table is not None:
            options["worker_init_fn"] = partial(_start_worker, table=self.table)
        super().__init__(dataset, num_workers=num_workers, collate_fn=collate, **options)

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        return _WatchedIterator(self, super().__iter__)


class _WatchedIterator(Iterator[dict[str, Any]]):
    def __init__(self, loader: WatchedLoader, make: Callable[[], Any]) -> None:
        self._loader = loader
        self._waiting_since: float | None = None
        self._verdict: str | None = None
        self._use(loader._iterator)  # the one whose workers persist, if this is not the first pass
        self._watch_for_hangs()
        with signals_held():
            self._use(self._guarded(make))

    def _use(self, iterator: Any) -> None:
        self._iterator = iterator
        # torch has no public name for its worker processes, and neither a dead nor a hanging one can be named without.
        self._workers: list[BaseProcess] = list(getattr(iterator, "_workers", []))

    def __next__(self) -> dict[str, Any]:
        batch = self._guarded(lambda: next(self._iterator))
        self._loader.skipped.count(batch.pop("skipped"))
        return batch

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            with self._waiting():
                return call()
        except (RuntimeError, ValueError, OSError, EOFError) as error:
            self._fail(error)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Lets the death of a worker end the wait for a batch that would never come; `_fail` says who died.

        torch's handler of SIGCHLD raises wherever the main thread is: also in the middle of an optimiser's step or of the
        writing of a checkpoint, whose state is then neither the old nor the new one. So it is not left in place. Outside
        the main thread, which alone may have a handler, torch looks for dead workers every 5 seconds.
        """
        self._waiting_since = time.monotonic()
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGCHLD)
        if before is None or getattr(before, "__module__", "").startswith("torch."):
            before = signal.SIG_DFL

        def child_ended(number: int, frame: FrameType | None) -> None:
            if callable(before):
                before(number, frame)
            self._raise_if_dead()

        if in_main:
            signal.signal(signal.SIGCHLD, child_ended)
        try:
            self._raise_if_dead()
            yield
        finally:
            self._waiting_since = None
            if in_main:
                signal.signal(signal.SIGCHLD, before)

    def _raise_if_dead(self) -> None:
        ending = getattr(self._iterator, "_shutdown", False)
        if self._waiting_since is None or ending or all(worker.is_alive() for worker in self._workers):
            return
        self._waiting_since = None  # once: several may die together
        raise RuntimeError("a DataLoader worker ended")

    def _watch_for_hangs(self) -> None:
        """Starts the thread that kills workers after the timeout; it ends with this iterator.

        torch's own timeout does not cover a worker that stops while it hands over a batch: it waits for ever.
        """
        timeout_s = self._loader.timeout_s
        if timeout_s <= 0 or self._loader.table is None:
            return

        def watch(iterator: Callable[[], _WatchedIterator | None]) -> None:
            # Periods are counted, not read from a clock: the whole run may have been suspended.
            since, num_periods = None, 0
            while (current := iterator()) is not None:
                num_periods = num_periods + 1 if current._waiting_since == since is not None else 0
                since = current._waiting_since
                if num_periods * WATCHDOG_PERIOD_S > timeout_s:
                    current._verdict = current._hangs()
                    current._kill_workers()
                    return
                del current
                time.sleep(WATCHDOG_PERIOD_S)

        threading.Thread(target=watch, args=(weakref.ref(self),), name="loader_watchdog", daemon=True).start()

    def _fail(self, error: Exception) -> NoReturn:
        """Raises what a user can act on, or the error itself if it is none of the loader's."""
        raised = re.match(r"Caught (\w+) in DataLoader worker process (\d+)", str(error))
        if not raised and isinstance(error, (ConnectionError, EOFError)):
            # A killed worker's files, its sentinel too, are closed a moment before it counts as ended.
            closed = wait([worker.sentinel for worker in self._workers], KILL_GRACE_S)
            for worker in self._workers:
                if worker.sentinel in closed:
                    worker.join(KILL_GRACE_S)
        dead = [number for number, worker in enumerate(self._workers) if not worker.is_alive()]
        message = self._verdict
        if message is None and raised:
            message = _raised(error, *raised.groups())
        elif message is None and dead:
            message = self._died(dead[0])
        if message is not None or raised:
            self._kill_workers()
        if message is None:
            raise error
        raise LoaderError(message) from error

    def _died(self, number: int) -> str:
        code = self._workers[number].exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        advice = {
            -signal.SIGKILL: "; if memory ran out, lower datamodule.num_workers or datamodule.batch_size",
            -signal.SIGBUS: "; if /dev/shm is full, enlarge it or lower datamodule.num_workers",
        }.get(code, "")
        return f"{self._named(number)} {how} {self._doing(number)}{advice}; resume=auto continues the run"

    def _hangs(self) -> str:
        table = self._loader.table
        assert table is not None
        number = max(range(len(self._workers)), key=lambda n: table.reading(n).busy_s)
        busy_s = table.reading(number).busy_s
        for_s = f" for {busy_s:.0f} s" if busy_s else ""
        return (
            f"{self._named(number)} hangs: no batch came within datamodule.timeout_s={self._loader.timeout_s:g}, and it "
            f"was seen {self._doing(number)}{for_s}; check the disk of that file, or raise datamodule.timeout_s; "
            "resume=auto continues the run"
        )

    def _named(self, number: int) -> str:
        return f"loader worker {number} (pid {self._workers[number].pid})"

    def _doing(self, number: int) -> str:
        assert self._loader.table is not None
        reading = self._loader.table.reading(number)
        if reading.index is None:
            return "before its first sample"
        epoch = "" if reading.epoch is None else f" of epoch {reading.epoch}"
        files = " and ".join(
            repr(str(path)) for path in self._loader.samples.files(reading.index, reading.epoch)
        )
        return f"{'while' if reading.busy_s else 'after'} reading sample {reading.index}{epoch}, {files}"

    def _kill_workers(self) -> None:
        """Ends all workers at once: torch would wait five seconds for each, and then ask a hanging one politely."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join(KILL_GRACE_S)


def _raised(error: Exception, kind: str, number: str) -> str | None:
    """The sentence of an error that the data set raised for a user; None for a mistake of ours, which keeps its trace."""
    if kind != UnreadableImage.__name__ and not isinstance(error, (ValueError, OSError)):
        return None
    text = str(error).strip().splitlines()[-1].partition(": ")[2]
    return f"{text} (in loader worker {number})"


def _start_worker(_number: int, *, table: ReadingTable) -> None:
    obey_main_process()
    worker = get_worker_info()
    assert worker is not None
    assert isinstance(worker.dataset, KeyedDataset)
    worker.dataset.reading = table
