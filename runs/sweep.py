"""Several trainings of one command: none is lost because another fails, and the end shows them all."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runs.messages import sentence


@dataclass(frozen=True)
class Outcome:
    """How a job of a sweep ended."""

    number: int
    overrides: list[str]
    status: str  # "finished" or why it failed
    loss: float | None = None


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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def check_single_process(config: dict[str, Any], overrides: Sequence[str] = ()) -> None:
    """A sweep's job may not start further processes: they would run the whole sweep again. Nor has it a `run_dir=`."""
    if any(word.lstrip("+").startswith("run_dir=") for word in overrides):
        raise ValueError(
            "run_dir= has no effect in a sweep (-m), which numbers its runs' folders; set hydra.sweep.dir=DIR instead"
        )
    trainer = config["trainer"]
    # As Lightning reads them: 1 and "1" are counts, [0] and "0," name the devices.
    is_one_device = re.fullmatch(r"1|\[\d+\]|\d+,", str(trainer.get("devices", 1)))
    for key, is_one in (("devices", is_one_device), ("num_nodes", trainer.get("num_nodes", 1) == 1)):
        if "WORLD_SIZE" not in os.environ and not is_one:
            raise ValueError(
                f"a sweep (-m) trains each job in one process, but trainer.{key} is {trainer[key]}: each further process "
                f"would run the whole sweep again; set trainer.{key}=1, or start the jobs one by one without -m"
            )
