"""What a loader worker does with signals that are meant for the run as a whole."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Without it (macOS) a worker cannot tell who sent a signal, and SIGTERM ends it.
CAN_TELL_SENDERS = hasattr(signal, "sigwaitinfo")


@contextmanager
def signals_held() -> Iterator[None]:
    """Starts workers with SIGTERM and Ctrl-C blocked; this process gets what came meanwhile at the end of the block.

    A new process inherits it before it runs a line of Python, and so do threads that libraries start in it after a
    fork (wandb does), which `outlive_group_signals` would come too late for.
    """
    if not CAN_TELL_SENDERS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_group_signals() -> None:
    """Keeps this worker when SIGTERM or Ctrl-C reaches the whole process group: from a terminal, `timeout`, a SLURM step.

    The main process completes its step first, for which it may wait for this worker, and several processes must not
    stop at different steps. SIGTERM from the main process still ends the worker at once, even in a read that hangs;
    torch and Python send it at their end. To be called in a worker that was started under `signals_held`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if CAN_TELL_SENDERS:
        threading.Thread(target=_end_when_asked, name="sigterm_watch", daemon=True).start()


def _end_when_asked() -> None:
    main = multiprocessing.parent_process()
    assert main is not None, "this is for loader workers"
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:
        continue
    os._exit(0)
