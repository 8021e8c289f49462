"""Signals that end a training: they are noted, and whoever watches stops where nothing is half done."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

EXIT_CTRL_C, EXIT_SIGTERM = 130, 143


class StopSignals:
    """Takes SIGTERM and Ctrl-C of this process (other signals by `take`) for as long as the `with` block runs.

    While `deferred` is False there is nothing to save and a signal ends the process where it stands. While it is
    True a signal is only noted, and whoever set it looks at `received` when nothing is half done. Then a second
    Ctrl-C ends at once, for a batch may take long; once `stopping` is True nothing disturbs the last save.

    Attributes:
        received: the first signal, or None.
        requeue_after: signals after which a SLURM job goes back into the queue.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.requeue_after: tuple[signal.Signals, ...] = ()
        self.deferred = self.stopping = False
        self._raised = False  # an exit, wherever the process stood
        self._before: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> StopSignals:
        self.take(signal.SIGTERM, signal.SIGINT)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def take(self, *signals: signal.Signals) -> None:
        """Notes these signals too; outside the main thread Python cannot, and all stays as it is."""
        if threading.current_thread() is threading.main_thread():
            for signum in set(signals) - self._before.keys():
                self._before[signum] = signal.signal(signum, self._note)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that the received signal ended."""
        return EXIT_CTRL_C if self.received == signal.SIGINT else EXIT_SIGTERM

    def leave_if_received(self) -> None:
        """Ends the process if a signal was noted; from here on signals do so themselves again.

        Raises:
            SystemExit: with `exit_code`.
        """
        self.deferred = False
        if self.received is not None:
            raise SystemExit(self.exit_code)

    def explains(self, error: BaseException) -> bool:
        """Whether an exception follows from the received signal and is no failure of its own.

        A signal to the whole process group ends loader workers too, and torch then raises a RuntimeError. What is raised
        while the signal's own exception passes follows from it as well; so does all that comes out after an exit amid an
        import, for libraries catch anything there and take the other one for missing.
        """
        if self.received is None:
            return False
        if self._raised:
            return True
        context: BaseException | None = error
        while context is not None:
            if isinstance(context, (SystemExit, KeyboardInterrupt)):
                return True
            context = context.__context__
        return "loader worker" in str(error).lower()

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked loader worker: the main process ends it
            return
        if self.received is None:
            self.received = signal.Signals(signum)
            # torch's handler raises in the middle of an update or of a save when a worker is gone. No SIG_DFL in its
            # place: a child's end that Python has noted but not handled yet would then be an OSError, anywhere.
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
            if not self.deferred:
                self._raised = True
                raise SystemExit(self.exit_code) if signum != signal.SIGINT else KeyboardInterrupt
            if signum == signal.SIGINT:  # the logging module may be in the middle of a line
                os.write(2, b"\nCtrl-C: stopping after this batch; press it again to stop at once\n")
        elif signum == signal.SIGINT and not self.stopping:
            raise KeyboardInterrupt
