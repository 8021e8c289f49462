"""What a loader worker does with signals that are meant for the run as a whole."""

import multiprocessing
import os
import signal
import threading


def outlive_group_signals() -> None:
    """Keeps this worker when SIGTERM or Ctrl-C reaches the whole process group: from a terminal, `timeout`, a SLURM step.

    The main process completes its step first, for which it may wait for this worker, and several processes must not
    stop at different steps. SIGTERM from the main process still ends the worker at once, even in a read that hangs;
    torch and Python send it at their end. To be called before the worker starts a thread. Where the system has no
    sigwaitinfo (macOS), SIGTERM ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_asked, name="sigterm_watch", daemon=True).start()


def _end_when_asked() -> None:
    main = multiprocessing.parent_process()
    assert main is not None, "this is for loader workers"
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:
        continue
    os._exit(0)
