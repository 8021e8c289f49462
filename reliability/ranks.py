"""Several processes of one training start with the same config and end together."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from reliability.lightning_internals import started_processes, take_over_processes
from reliability.main_process import MAIN_PID_VARIABLE, is_main_process

log = logging.getLogger(__name__)

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun and others set
WAIT_WITHIN_S = 600  # Lightning itself waits for half an hour
READ_WITHIN_S = 20
CONNECT_WITHIN_S = 5
POLL_S = 0.1
END_ALONE_WITHIN_S = 10
END_WITHIN_S = 60  # for what the main process does after another has failed: W&B may upload for 30 s
ORPHAN_ENDS_WITHIN_S = 20
LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")  # gloo's and NCCL's words
_stores: list[Any] = []  # process 0 serves its store until it ends; Lightning's own uses the same server


def check_same(texts: Sequence[str]) -> None:
    """Compares the configs of all processes as JSON, in the order of their ranks.

    Raises:
        ValueError: they differ; the text names the ranks and the keys.
    """
    others = [rank for rank, text in enumerate(texts) if text != texts[0]]
    if not others:
        return
    first, other = (_leaves(json.loads(texts[rank])) for rank in (0, others[0]))
    pairs = {k: (other.get(k, "absent"), first.get(k, "absent")) for k in sorted(first.keys() | other.keys())}
    found = [f"{k} is {value} instead of {wanted}" for k, (value, wanted) in pairs.items() if value != wanted]
    shown = ", ".join(found if len(found) <= 3 else [*found[:3], "..."])
    raise ValueError(
        f"the config of process {', '.join(map(str, others))} of {len(texts)} (counted from 0) differs from that of "
        f"process 0: {shown}; start all processes with the same command"
    )


def wait_for_all_ranks(text: str, world_size: int, within_s: float = WAIT_WITHIN_S) -> None:
    """Waits until all processes that a launcher has started are here, and compares their configs.

    Lightning would wait for half an hour, and for processes that are not of the same number for ever. Processes that
    Lightning starts by itself are compared by `RankWatch`.

    Args:
        text: the config of this process as JSON, the same wherever the run folder lies.
        world_size: the number of processes that its trainer expects.
        within_s: the longest wait.

    Raises:
        ValueError: a process did not come, has another config, or the trainer expects another number.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1 or any(name not in os.environ for name in LAUNCHER_VARIABLES):
        return
    check_same(_exchanged(text, int(os.environ["RANK"]), started, within_s))
    if started != world_size:
        raise ValueError(
            f"a launcher started {started} processes, but trainer.devices and trainer.num_nodes make {world_size}; use "
            "trainer=ddp with trainer.devices=PROCESSES_ON_EACH_MACHINE"
        )


def _exchanged(text: str, rank: int, started: int, within_s: float) -> list[str]:
    """What each process gave, by rank, through a key-value store at the launcher's address."""
    until = time.monotonic() + within_s
    store = _store(rank, started, until)
    if store is None:
        raise ValueError(_absent(0, started, within_s))
    board = distributed.PrefixStore(f"config/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    board.set(str(rank), text)
    for other in range(started):
        while not board.check([str(other)]):  # get() would wait deaf to signals
            if time.monotonic() > until:
                raise ValueError(_absent(other, started, within_s))
            time.sleep(POLL_S)
    texts = [board.get(str(other)).decode() for other in range(started)]
    board.add("read", 1)
    until = time.monotonic() + READ_WITHIN_S
    while rank == 0 and board.add("read", 0) < started and time.monotonic() < until:
        time.sleep(POLL_S)  # if it ended now, so would the store, and the others would not learn the reason
    return texts


def _store(rank: int, started: int, until: float) -> Any:
    """The store of process 0, or of torchrun; None if there is none until then."""
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=CONNECT_WITHIN_S)
    while True:
        try:
            store = distributed.TCPStore(
                *address, started, serves, timeout, wait_for_workers=False, multi_tenant=True
            )
        except distributed.DistError:
            if serves:  # the port is taken
                raise
            if time.monotonic() > until:
                return None
        else:
            _stores.append(store)
            return store


def _absent(rank: int, started: int, within_s: float) -> str:
    return (
        f"process {rank} of {started} (counted from 0) has not come within {within_s:g} s; its own output says why, or "
        "it was given another MASTER_ADDR or MASTER_PORT"
    )


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested dicts by dotted key."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v
        for key, part in value.items()
        for k, v in _leaves(part, f"{prefix}.{key}" if prefix else key).items()
    }


class RankWatch(Callback):
    """Compares the configs of all processes before they train, and ends the main process if another one fails.

    Args:
        text: the config of this process as JSON, the same wherever the run folder lies.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._over = threading.Event()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Runs in all processes once they can talk to each other.

        Raises:
            ValueError: in all of them alike, if the configs differ.
        """
        if trainer.world_size == 1 or stage != "fit":
            return
        texts: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(texts, self._text)
        self._watch_started(trainer)
        check_same(texts)
        if trainer.is_global_zero:
            digest = hashlib.sha256(self._text.encode()).hexdigest()[:12]
            log.info("%d processes with the same config %s", trainer.world_size, digest)

    @contextmanager
    def ended(self, trainer: Trainer) -> Iterator[None]:
        """If the block fails, the processes that Lightning started end too: they would wait for the main one."""
        try:
            yield
        except BaseException as error:
            failed = _end(started_processes(trainer)) or "another process"
            if not isinstance(error, RuntimeError) or not any(words in str(error) for words in LOST):
                raise
            raise ConnectionError(
                f"{failed} of the {trainer.world_size} of this training has ended, so this one cannot go on; its own "
                "output says why"
            ) from error
        finally:
            self._over.set()

    def _watch_started(self, trainer: Trainer) -> None:
        """Takes over Lightning's watch over the processes it started.

        Lightning kills the main process up to 5 s after another has failed, whatever it does then: the run would
        stay marked as running, in its folder and in W&B. Here it has a minute for that.
        """
        started = take_over_processes(trainer)
        if not started:
            return

        def watch() -> None:
            while all(process.poll() in (None, 0) for process in started):
                if self._over.wait(0.5):
                    return
            if self._over.wait(END_WITHIN_S):
                return
            for process in started:
                process.kill()
            log.error("another process has failed, and this one does not end by itself")
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=watch, daemon=True, name="process-watch").start()


def _end(processes: list[subprocess.Popen[bytes]]) -> str:
    """Waits for the processes and kills those that hang; names the first that failed by itself, if any."""
    failed = ""
    for number, process in enumerate(processes, start=1):
        try:
            code = process.wait(END_ALONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:
            failed = failed or (f"process {number} (exit code {code})" if code else "")
    return failed


def end_with_main() -> None:
    """Has a process that Lightning started end when the main one is gone.

    The next collective fails at once on CPUs, but on GPUs it would wait for ten minutes. The main process may have gone
    before this one has imported everything, so its id is handed over.
    """
    if MAIN_PID_VARIABLE not in os.environ or is_main_process():
        return
    main = int(os.environ[MAIN_PID_VARIABLE])

    def watch() -> None:
        while os.getppid() == main:
            time.sleep(1)
        time.sleep(ORPHAN_ENDS_WITHIN_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="main-process-watch").start()
