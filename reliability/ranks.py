"""Several processes of one training start with the same config and end together."""

import hashlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from reliability.lightning_internals import started_processes, take_over_processes
from reliability.main_process import RUN_DIR_VARIABLE, is_main_process
from reliability.same_config import check_same

log = logging.getLogger(__name__)

END_ALONE_WITHIN_S = 10
END_WITHIN_S = 60  # for what the main process does after another has failed: W&B may upload for 30 s
ORPHAN_ENDS_WITHIN_S = 20
LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")  # gloo's and NCCL's words


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
            failed = _end(started_processes(trainer))
            if not _is_lost_connection(error):
                raise
            which = "another process" if failed is None else f"process {failed[0]} (exit code {failed[1]})"
            raise ConnectionError(
                f"{which} of the {trainer.world_size} of this training has ended, so this one cannot go on; its own "
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


def _end(processes: list[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Waits for the processes and kills those that hang; the number and exit code of one that failed by itself."""
    failed = None
    for number, process in enumerate(processes, start=1):
        try:
            code = process.wait(END_ALONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:
            failed = failed or ((number, code) if code else None)
    return failed


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def end_with_main() -> None:
    """Has a process that Lightning started end when the main one is gone.

    The next collective fails at once on CPUs, but on GPUs it would wait for ten minutes.
    """
    if RUN_DIR_VARIABLE not in os.environ or is_main_process():
        return
    main = os.getppid()

    def watch() -> None:
        while os.getppid() == main:
            time.sleep(1)
        time.sleep(ORPHAN_ENDS_WITHIN_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="main-process-watch").start()
