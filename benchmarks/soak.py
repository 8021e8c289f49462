"""Kills real trainings at random moments, starts them again with the same command, and compares their ends.

python -m benchmarks.soak [num_kills=32 seed=0 max_minutes=14 folder=outputs/soak]
"""

import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from benchmarks.soak_lane import MOMENTS, Kill, Lane, differences
from doors.options import parse
from lightning_modules.options import option
from runs.cli import run_door

USAGE = "python -m benchmarks.soak [num_kills=32 seed=0 max_minutes=14 folder=outputs/soak]"
SHARED = """
    datamodule=builtin_photos datamodule.size_px=32 datamodule.batch_size=4 resume=auto
    trainer=cpu trainer.max_steps=60 trainer.log_every_n_steps=1 trainer.limit_val_batches=4
    trainer.enable_progress_bar=false callbacks.last.every_n_steps=5 callbacks.samples.num_images=2
"""
TRAININGS = {
    "colorize_controlnet": """
        experiment=colorize_controlnet datamodule.num_workers=2 module.sampler.num_steps=2
        trainer.val_check_interval=10
    """,
    "autoencoder": """
        experiment=autoencoder trainer.accumulate_grad_batches=2 trainer.val_check_interval=20
    """,
}


@dataclass(frozen=True)
class SoakOptions:
    """Options of the soak."""

    num_kills: int = option("kills in all, shared by the trainings", 32)
    seed: int = option("of the moments", 0)
    max_minutes: float = option("no further kill after this time", 14.0)
    folder: str = option("where the runs go; it is emptied first", "outputs/soak")


def soak(options: SoakOptions) -> tuple[list[Lane], list[str]]:
    """The lanes with their kills, and what differs between disturbed and undisturbed runs; both trainings at once.

    Raises:
        ValueError: a number of kills below 1.
    """
    if options.num_kills < 1:
        raise ValueError(f"num_kills is {options.num_kills}; expected at least 1")
    folder = Path(options.folder).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    deadline = time.monotonic() + 60 * options.max_minutes
    share = -(-options.num_kills // len(TRAININGS))
    lanes = [
        Lane(name, [*words.split(), *SHARED.split()], folder / name, options.seed + number)
        for number, (name, words) in enumerate(TRAININGS.items())
    ]
    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(lambda lane: lane.run(share, deadline), lanes))
    found = [f"{lane.name}: {line}" for lane in lanes for line in lane.errors]
    for lane in lanes:
        for run_dir in lane.finished:
            unequal = differences(lane.undisturbed, run_dir)
            found += [f"{lane.name}/{run_dir.name}: {line}" for line in unequal]
    return lanes, found


def report(lanes: list[Lane]) -> Table:
    """What happened, by signal and moment."""
    table = Table(title="kills")
    outcomes = ("exit codes", "survivors", "lost checkpoints", "steps lost, mean (most)")
    for column in ("signal", "moment", "kills", *outcomes):
        table.add_column(column)
    kills = [kill for lane in lanes for kill in lane.kills]
    for signal in ("SIGTERM", "SIGKILL"):
        for moment in MOMENTS:
            chosen = [k for k in kills if (k.signal, k.moment) == (signal, moment)]
            if chosen:
                table.add_row(signal, moment, *_cells(chosen))
    table.add_section()
    table.add_row("all", "", *_cells(kills))
    return table


def _cells(kills: list[Kill]) -> tuple[str, ...]:
    codes = " ".join(str(code) for code in sorted({k.exit_code for k in kills}))
    survivors, lost = sum(k.survivors for k in kills), sum(k.lost_checkpoint for k in kills)
    steps = [k.finished_step - k.saved_step for k in kills]
    return str(len(kills)), codes, str(survivors), str(lost), f"{mean(steps):.1f} ({max(steps)})"


def main() -> None:
    """Runs the soak; the exit code is 1 if a checkpoint was lost, a process was left or an end differs."""
    options = parse(SoakOptions, sys.argv[1:], USAGE).refuse(method=True).door
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    start = time.monotonic()
    lanes, found = soak(options)
    console = Console(width=110)
    console.print(report(lanes))
    kills = [kill for lane in lanes for kill in lane.kills]
    runs = sum(len(lane.finished) for lane in lanes)
    again = [k.restart_s for k in kills if k.restart_s is not None]
    console.print(
        f"{len(kills)} kills in {runs} runs of {len(lanes)} trainings, {(time.monotonic() - start) / 60:.1f} minutes; "
        f"the next step came {mean(again) if again else 0:.1f} s after a restart (without a kill: "
        f"{mean(lane.start_s for lane in lanes):.1f} s)"
    )
    for line in found:
        console.print(line, style="red")
    if found or len(kills) < options.num_kills:
        sys.exit(f"error: {len(found)} differences or faults, {len(kills)} of {options.num_kills} kills")
    console.print("no process was left, and every run ended bitwise equal to its undisturbed twin")


if __name__ == "__main__":
    run_door(main)
