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
        ValueError: more than one device or machine without an outside launcher.
    """
    for key, count in (("devices", _num_devices(config["trainer"].get("devices", 1))), ("num_nodes", None)):
        given = config["trainer"].get(key, 1)
        if "WORLD_SIZE" not in os.environ and (given if count is None else count) != 1:
            raise ValueError(
                f"a sweep (-m) trains each job in one process, but trainer.{key} is {given}: each further process would "
                f"run the whole sweep again; set trainer.{key}=1, or start the jobs one by one without -m"
            )


def _num_devices(devices: Any) -> int:
    """How many devices Lightning's `devices` names; -1 for as many as there are.

    A number as text is a count ("2"), and a list is one of indices ([0], "0,").
    """
    if isinstance(devices, str) and "," in devices:
        devices = [index for index in devices.split(",") if index.strip()]
    if isinstance(devices, list):
        return len(devices)
    return -1 if devices in (None, "auto") else int(devices)
