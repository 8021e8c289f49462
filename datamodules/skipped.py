"""Counts the samples that were skipped because their file could not be read."""

import logging
from collections import deque
from collections.abc import Sequence

log = logging.getLogger(__name__)

NUM_KEPT = 3


class SkippedSamples:
    """Samples that a loader handed out, and those of them that stand for an unreadable file.

    Counted where the batches arrive, in the main process: the figures are exact for every number of workers and do
    not run ahead of the training by what the workers have prefetched.

    Attributes:
        num_read: Samples handed out.
        num_skipped: Those among them in whose place another photo stands.
        last: The files that were skipped last, with their reasons.

    Example:
        >>> samples = SkippedSamples()
        >>> samples.count(["", "", "", "'a.png': it is empty"])
        >>> samples.share
        0.25
    """

    def __init__(self) -> None:
        self.num_read = self.num_skipped = 0
        self.last: deque[str] = deque(maxlen=NUM_KEPT)
        self._named: set[str] = set()

    @property
    def share(self) -> float:
        """Skipped samples among those read."""
        return self.num_skipped / max(1, self.num_read)

    def count(self, skipped: Sequence[str]) -> None:
        """Takes the reasons of one batch, "" where the sample is its own photo; each file is logged once."""
        self.num_read += len(skipped)
        for reason in filter(None, skipped):
            self.num_skipped += 1
            if reason in self.last:
                self.last.remove(reason)
            self.last.append(reason)
            if reason not in self._named:
                self._named.add(reason)
                log.warning("cannot read %s; the next photo takes its place", reason)
