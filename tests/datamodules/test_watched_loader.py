"""Loader workers that are killed, hang or raise, and what is left of them."""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import filterfalse
from pathlib import Path
from typing import Any

import pytest

from datamodules.keyed_dataset import Draw, Item
from datamodules.photo_dataset import PhotoDataset, PhotoTransform
from datamodules.step_sampler import StepBatchSampler
from datamodules.watched_loader import LoaderError, WatchedLoader

Writer = Callable[..., Path]
TIMEOUT_S = 1.0


class StuckAt(PhotoDataset):
    """Reading one of its files never ends, as on a disk that no longer answers."""

    stuck: int | None = None

    def item(self, index: int, draw: Draw | None) -> Item:
        if index == self.stuck:
            time.sleep(600)
        return super().item(index, draw)


def dataset_of(folder: Path) -> StuckAt:
    paths = sorted(folder.iterdir())
    return StuckAt(paths, names=[path.name for path in paths], transform=PhotoTransform(8))


def loader_of(dataset: PhotoDataset, *, num_batches: int = 40, **options: Any) -> WatchedLoader:
    sampler = StepBatchSampler(len(dataset), 2, num_batches, seed=0)
    defaults = {"num_workers": 2, "timeout": 60.0, "persistent_workers": True}
    return WatchedLoader(dataset, batch_sampler=sampler, **(defaults | options))


@pytest.fixture
def dataset(write_photos: Writer) -> StuckAt:
    return dataset_of(write_photos("a", 8))


def pids_of(batches: Iterator[Any]) -> list[int]:
    return [worker.pid for worker in batches._workers]


def status_of(pid: int) -> list[str]:
    """State, parent and so on; of a process that is gone nothing is left but the state "Z", as of a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["Z"]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has, its parent is only yet to take note."""
    return status_of(pid)[0] == "Z"


def wait_until(holds: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.05)


def assert_all_end(pids: Collection[int], within_s: float = 20.0) -> None:
    assert pids
    wait_until(lambda: all(map(is_gone, pids)), within_s)


@pytest.mark.parametrize("handler", [signal.SIG_DFL, None], ids=["lost", "torch's"])
def test_a_killed_worker_is_named_when_the_next_batch_is_asked_for(dataset: StuckAt, handler: Any) -> None:
    if handler is not None:  # Lightning takes torch's handler away at the end of a fit
        signal.signal(signal.SIGCHLD, handler)
    batches = iter(loader_of(dataset))
    for _ in range(2):  # one batch of each worker: both have read
        next(batches)
    pids = pids_of(batches)
    os.kill(pids[1], signal.SIGKILL)
    for _ in range(100):  # a step in which torch alone would raise, wherever it is
        time.sleep(0.005)
    start = time.monotonic()
    with pytest.raises(LoaderError) as caught:
        next(batches)
    assert time.monotonic() - start < 20  # not by the timeout of 60
    assert re.fullmatch(
        rf"loader worker 1 \(pid {pids[1]}\) was killed by SIGKILL (while|after) reading sample \d of epoch \d, "
        r"'.*photo_\d.png'; if memory ran out, lower datamodule.num_workers or datamodule.batch_size; resume=auto "
        "continues the run",
        str(caught.value),
    )
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert_all_end(pids)


def test_a_worker_that_dies_while_a_batch_is_waited_for(dataset: StuckAt) -> None:
    dataset.stuck = 3
    batches = iter(loader_of(dataset, num_workers=1))
    (pid,) = pids_of(batches)
    threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(
        LoaderError, match=r"worker 0 .* killed by SIGKILL while reading sample 3 of epoch 0, '.*photo_3.png'"
    ):
        list(batches)
    assert_all_end([pid])


@pytest.mark.parametrize("error", [ConnectionResetError("Connection reset by peer"), EOFError()], ids=repr)
def test_a_worker_that_dies_while_it_hands_over_a_batch(dataset: StuckAt, error: Exception) -> None:
    batches = iter(loader_of(dataset, num_workers=1))
    (pid,) = pids_of(batches)

    def receive() -> None:
        os.kill(pid, signal.SIGKILL)
        raise error  # comes before the system counts the worker as ended

    with pytest.raises(LoaderError, match=rf"worker 0 \(pid {pid}\) was killed by SIGKILL"):
        batches._guarded(receive)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_hanging_worker_is_an_error_within_the_timeout(dataset: StuckAt, num_workers: int) -> None:
    dataset.stuck = 3
    batches = iter(loader_of(dataset, num_workers=num_workers, timeout=TIMEOUT_S))
    pids = pids_of(batches)
    start = time.monotonic()
    with pytest.raises(LoaderError) as caught:
        list(batches)
    assert time.monotonic() - start < TIMEOUT_S + 5.0
    assert re.fullmatch(
        rf"loader worker \d \(pid ({'|'.join(map(str, pids))})\) hangs: no batch came within datamodule.timeout_s=1, and "
        r"it was seen while reading sample 3 of epoch 0, '.*photo_3.png' for \d s; check the disk of that file, or raise "
        "datamodule.timeout_s; resume=auto continues the run",
        str(caught.value),
    )
    assert_all_end(pids)


def test_a_stopped_worker_is_killed_too(dataset: StuckAt) -> None:
    batches = iter(loader_of(dataset, num_workers=1, timeout=TIMEOUT_S))
    next(batches)
    os.kill(pids_of(batches)[0], signal.SIGSTOP)  # it does not answer a SIGTERM
    with pytest.raises(
        LoaderError, match=r"loader worker 0 .* hangs: .* and it was seen (while|after) reading sample"
    ):
        list(batches)
    assert_all_end(pids_of(batches))


def test_persistent_workers_that_died_between_two_passes_are_named(dataset: StuckAt) -> None:
    loader = WatchedLoader(dataset, batch_size=4, num_workers=1, persistent_workers=True, timeout=60.0)
    first = iter(loader)
    assert len(list(first)) == 2
    os.kill(pids_of(first)[0], signal.SIGKILL)
    assert_all_end(pids_of(first))
    with pytest.raises(
        LoaderError, match=r"worker 0 .* was killed by SIGKILL after reading sample 7, '.*photo_7.png'"
    ):
        list(loader)


def test_what_the_data_set_says_to_a_user_stays_one_sentence(dataset: StuckAt) -> None:
    for path in dataset.paths:
        path.write_bytes(b"")
    with pytest.raises(LoaderError) as caught:
        list(loader_of(dataset, num_workers=1))
    assert re.fullmatch(
        r"cannot read the image '.*photo_\d.png': it is empty; the 7 files after it cannot be read either "
        r"\(in loader worker 0\)",
        str(caught.value),
    )


class Mistaken(StuckAt):
    def item(self, index: int, draw: Draw | None) -> Item:
        raise TypeError("a mistake of ours")


def test_a_mistake_in_the_code_keeps_its_trace(dataset: StuckAt) -> None:
    mistaken = Mistaken(dataset.paths, names=dataset.names, transform=dataset.transform)
    with pytest.raises(TypeError, match="Original Traceback"):
        list(loader_of(mistaken, num_workers=1))


def test_the_count_of_skipped_samples_is_exact_for_any_number_of_workers(dataset: StuckAt) -> None:
    dataset.paths[3].write_bytes(b"")
    counts = []
    for num_workers in (0, 1, 3):
        options = {"timeout": 0.0, "persistent_workers": False} if num_workers == 0 else {}
        loader = loader_of(dataset, num_workers=num_workers, num_batches=20, **options)
        batches = iter(loader)
        for number in range(1, 11):  # the workers are ahead of it
            assert "skipped" not in next(batches)
            counts.append((number, loader.skipped.num_read, loader.skipped.num_skipped))
    assert counts[:10] == counts[10:20] == counts[20:]
    assert counts[9][1] == 20
    assert counts[9][2] in (2, 3)  # 20 samples are 2.5 passes over 8 photos


def _stopped_before(start: Callable[[int], None], number: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    start(number)


def _main(folder: Path, pids: Any, method: str, ends_by: str, moment: str) -> None:
    dataset = dataset_of(folder)
    dataset.stuck = 5
    num_workers = 3 if method == "fork" else 1  # those of the others import everything first
    loader = loader_of(dataset, num_workers=num_workers, timeout=0.0, multiprocessing_context=method)
    if moment == "starting":
        loader.worker_init_fn = partial(_stopped_before, loader.worker_init_fn)
    batches = iter(loader)
    if moment == "reading":
        next(batches)
        time.sleep(0.5)  # one hangs by now
    workers = pids_of(batches)
    # The server that workers are forked from must end too.
    pids.put((workers, {*workers, *(int(status_of(worker)[1]) for worker in workers)} - {os.getpid()}))
    if ends_by == "exception":
        raise SystemExit(3)
    time.sleep(600)


@pytest.mark.parametrize(
    ("method", "ends_by", "moment"),
    [
        ("fork", "exception", "reading"),
        ("fork", "SIGKILL", "reading"),
        ("forkserver", "SIGKILL", "reading"),
        # Neither torch nor we have looked at the parent yet.
        ("fork", "SIGKILL", "starting"),
        ("forkserver", "SIGKILL", "starting"),
        pytest.param("spawn", "SIGKILL", "starting", marks=pytest.mark.slow),
    ],
)
def test_no_worker_survives_the_main_process(
    write_photos: Writer, method: str, ends_by: str, moment: str
) -> None:
    folder = write_photos("a", 8)
    unfinished = iter(loader_of(dataset_of(folder)))  # its workers are no children of the forked process
    next(unfinished)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    main = context.Process(target=_main, args=(folder, queue, method, ends_by, moment))
    main.start()
    pids: set[int] = set()
    try:
        workers, pids = queue.get(timeout=60)
        assert (len(workers), len(pids)) == {"fork": (3, 3), "spawn": (1, 1), "forkserver": (1, 2)}[method]
        if moment == "starting":
            wait_until(lambda: all(status_of(pid)[0] == "T" for pid in workers), within_s=60.0)
        if ends_by == "SIGKILL":
            main.kill()
        wait_until(lambda: main.exitcode is not None, within_s=60.0)  # `join` waits for forked workers too
        assert main.exitcode == (3 if ends_by == "exception" else -signal.SIGKILL)
        if moment == "starting":
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
        assert_all_end(pids, within_s=10.0)
    finally:
        main.kill()
        for pid in filterfalse(is_gone, pids):
            os.kill(pid, signal.SIGKILL)


def test_workers_outlive_the_thread_that_started_them(dataset: StuckAt) -> None:
    with ThreadPoolExecutor(1) as pool:
        batches = pool.submit(lambda: iter(loader_of(dataset, num_batches=20))).result(60)
    assert len(list(batches)) == 20
