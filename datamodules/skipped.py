"""Counts the samples that were skipped as unreadable."""

import logging
from collections import deque
from collections.abc import Sequence

log = logging.getLogger(__name__)

NUM_KEPT = 3


class SkippedSamples:
    """Samples that a loader handed out, and those of them that stand for an unreadable file.

    Counted where the batches arrive, in the main process: the figures are exact for every number of workers and do
    not run ahead of the training by what the workers have prefetched.

    Example:
        >>> samples = SkippedSamples()
        >>> samples.count(["", "", "", "'a.png': it is empty"])
        >>> samples.num_skipped, samples.num_read
        (1, 4)
    """

    def __init__(self) -> None:
        self.num_read = 0  # samples handed out
        self.num_skipped = 0  # those among them in whose place another sample stands
        self.last: deque[str] = deque(maxlen=NUM_KEPT)  # files that were skipped last, with their reasons
        self._named: set[str] = set()

    def count(self, skipped: Sequence[str]) -> None:
        """Takes the reasons of one batch, "" where the sample is its own; each file is logged once."""
        self.num_read += len(skipped)
        for reason in filter(None, skipped):
            self.num_skipped += 1
            if reason in self.last:
                self.last.remove(reason)
            self.last.append(reason)
            if reason not in self._named:
                self._named.add(reason)
                log.warning("cannot read %s; the next sample takes its place", reason)
