"""Counts the samples that were skipped as unreadable."""

import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)

NUM_KEPT = 3


class SkippedSamples:
    """Samples that a loader handed out, and those of them that stand for an unreadable file.

    Counted in the main process, where the batches arrive: exact for any number of workers, whatever they have prefetched.
    """

    def __init__(self) -> None:
        self.num_read = 0  # samples handed out
        self.num_skipped = 0  # those among them in whose place another sample stands
        self._reasons: dict[
            str, None
        ] = {}  # what was wrong with each file, the one that was skipped last at the end

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
