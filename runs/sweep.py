"""Several trainings of one command: none is lost because another fails, and the end shows them all."""

import os
import sys
import traceback
from dataclasses import dataclass
from typing import Any

from runs.messages import sentence


@dataclass(frozen=True)
class Outcome:
    """How a job of a sweep ended."""

    number: int
    overrides: list[str]
    status: str
    loss: float | None = None

    @property
    def failed(self) -> bool:
        return self.status != "finished"


def report_failure(error: Exception, number: int, overrides: list[str], expected: bool) -> str:
    """Shows why a job failed, with the traceback where it is not the user's to mend, and returns the status."""
    reason = sentence(error, overrides)
    if not expected:
        traceback.print_exception(error)
    sys.stderr.write(f"error: job {number}: {reason}\n")
    return f"failed: {reason.partition(' (details:')[0]}"


def table(outcomes: list[Outcome]) -> str:
    """One line per job: number, the overrides in which the jobs differ, val/loss and status."""
    common = set.intersection(*(set(o.overrides) for o in outcomes)) if len(outcomes) > 1 else set()
    rows = [("job", "overrides", "val/loss", "status")]
    for o in outcomes:
        own = " ".join(change for change in o.overrides if change not in common)
        rows.append((str(o.number), own, "-" if o.loss is None else f"{o.loss:.5g}", o.status))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
    )


def check_single_process(config: dict[str, Any]) -> None:
    """A sweep's job may not start further processes: they would run the whole sweep again.

    Raises:
        ValueError: more than one device without an outside launcher.
    """
    devices = config["trainer"].get("devices", 1)
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    if not one and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            f"a sweep (-m) trains each job in one process, but trainer.devices is {devices}: each further process would "
            "run the whole sweep again; set trainer.devices=1, or start the jobs one by one without -m"
        )
