"""One training that is killed again and again: when to strike, what must hold afterwards."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from callbacks.csv_logger import AppendingCSVLogger
from reliability.checkpoint_io import newest_whole, read_checkpoint
from runs.folder import status

ROOT = Path(__file__).parents[1]
MOMENTS = ("start", "step", "validation", "saving")
ORDER = [  # moments and signals in turn
    *(("step", "SIGTERM"), ("validation", "SIGKILL"), ("saving", "SIGKILL"), ("step", "SIGKILL")),
    *(("validation", "SIGTERM"), ("saving", "SIGTERM"), ("start", "SIGKILL"), ("saving", "SIGKILL")),
    *(("validation", "SIGKILL"), ("start", "SIGTERM")),
]
EXIT_CODES = {"SIGTERM": 143, "SIGKILL": 137}  # as a shell gives them
TIMEOUT_S = 300
WORKERS_END_WITHIN_S = 10
RUN_VARIABLE = "SOAK_RUN"  # marks the processes of a run
VAL_EVERY_N_STEPS = 10  # of each training, in optimiser steps


@dataclass
class Kill:
    """One kill: where the run was, and what was left of it."""

    moment: str
    signal: str
    exit_code: int
    finished_step: int  # of the curve
    saved_step: int  # of the newest whole checkpoint
    survivors: int = 0  # processes that were still there after WORKERS_END_WITHIN_S
    lost_checkpoint: bool = False
    restart_s: float | None = None  # from the restart to the next step


class Watch:
    """What one start of a training does, seen from its run folder."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.begun, self._wall = time.monotonic(), time.time()
        self._curve_before = self._changed_at()
        self._read_at, self._rows = self._curve_before, _rows(run_dir)
        self.first_step_s: float | None = None  # seconds until the first new row

    def look(self) -> None:
        """Takes in what happened since the last look."""
        changed_at = self._changed_at()
        if changed_at != self._read_at:
            self._read_at, self._rows = changed_at, _rows(self.run_dir)
        if self.first_step_s is None and changed_at != self._curve_before:
            self.first_step_s = time.monotonic() - self.begun

    @property
    def finished_step(self) -> int:
        """Steps on the curve."""
        steps = [int(row["step"]) for row in self._rows if row.get("train/loss")]
        return steps[-1] + 1 if steps else 0

    def phase(self) -> str:
        """One of MOMENTS."""
        if self.first_step_s is None:
            return "start"
        if any(_changed(p) > self._wall for p in (self.run_dir / "checkpoints").glob(".*.tmp")):
            return "saving"
        trained = bool(self._rows and self._rows[-1].get("train/loss"))
        return "validation" if trained and self.finished_step % VAL_EVERY_N_STEPS == 0 else "step"

    def _changed_at(self) -> int:
        path = self.run_dir / "metrics.csv"
        return path.stat().st_mtime_ns if path.is_file() else 0


class Lane:
    """A training as a command, its undisturbed run and its killed ones.

    Args:
        name: of the training.
        words: of the command after `python train.py`.
        folder: of its runs.
        seed: of the moments.

    Attributes:
        kills, errors: what happened, and what should not have.
        finished: folders of the killed runs that came to their end.
        start_s: seconds from the command to the first step of the undisturbed run.
    """

    def __init__(self, name: str, words: list[str], folder: Path, seed: int) -> None:
        self.name, self.words, self.folder = name, words, folder
        self.moments = random.Random(seed)
        self.undisturbed = folder / "undisturbed"
        self.kills: list[Kill] = []
        self.errors: list[str] = []
        self.finished: list[Path] = []
        self.start_s = 0.0

    def run(self, num_kills: int, deadline: float) -> None:
        """The undisturbed run, then killed ones until there were enough kills or the time is over."""
        self.folder.mkdir(parents=True)
        self.start_s = self._launch(self.undisturbed) or 0.0
        while len(self.kills) < num_kills and time.monotonic() < deadline and not self.errors:
            run_dir = self.folder / f"killed_{len(self.finished)}"
            while status(run_dir) != "finished" and not self.errors:
                more = len(self.kills) < num_kills and time.monotonic() < deadline
                restart_s = self._launch(run_dir, *(ORDER[len(self.kills) % len(ORDER)] if more else ()))
                for kill in self.kills[:-1]:
                    if kill.restart_s is None:
                        kill.restart_s = restart_s
            if status(run_dir) != "finished":
                return
            self.finished.append(run_dir)

    def _launch(self, run_dir: Path, moment: str = "", name: str = "") -> float | None:
        """Starts the command, strikes at the moment if there is one, and returns the seconds until its first step."""
        command = [sys.executable, str(ROOT / "train.py"), *self.words, f"run_dir={run_dir}"]
        saved_before, steps = saved_step(run_dir), self.moments.randint(2, 9)
        pause, start = self.moments.uniform(0.0, 0.05), self.moments.uniform(0.1, 1.0)
        with open(f"{run_dir}.log", "ab") as log:
            watch, struck_in = Watch(run_dir), None
            marked = os.environ | {RUN_VARIABLE: str(run_dir)}
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=marked)
            try:
                while process.poll() is None and time.monotonic() < watch.begun + TIMEOUT_S:
                    watch.look()
                    moved = watch.finished_step - saved_before if watch.first_step_s is not None else 0
                    due = {
                        "start": time.monotonic() - watch.begun > start * self.start_s,
                        "step": moved >= steps,
                    }.get(moment, moved > 0 and watch.phase() == moment)
                    if struck_in is None and due:
                        time.sleep(pause if moment != "saving" else pause / 20)
                        watch.look()
                        struck_in = watch.phase()
                        process.send_signal(signal.Signals[name])
                    time.sleep(0.001)
            finally:
                process.kill()
                process.wait()
        watch.look()
        survivors = end_survivors(run_dir)
        if struck_in is not None and status(run_dir) != "finished":
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            kill = Kill(struck_in, name, code, watch.finished_step, saved_step(run_dir), survivors)
            self._judge(kill, run_dir, saved_before)
        elif process.returncode and struck_in is None:  # a strike may also fall into the interpreter's end
            self.errors.append(f"{run_dir.name} ended by itself with exit code {process.returncode}")
        if survivors:
            self.errors.append(
                f"{run_dir.name}: {survivors} processes were left {WORKERS_END_WITHIN_S} s after the end"
            )
        return watch.first_step_s

    def _judge(self, kill: Kill, run_dir: Path, saved_before: int) -> None:
        last = run_dir / "checkpoints" / "last.ckpt"
        whole = not last.exists() or newest_whole(last.parent) == last
        kill.lost_checkpoint = kill.saved_step < saved_before or not whole
        self.kills.append(kill)
        where = f"kill {len(self.kills)} ({kill.signal}, {kill.moment})"
        if kill.exit_code != EXIT_CODES[kill.signal]:
            self.errors.append(f"{where}: exit code {kill.exit_code}")
        if kill.lost_checkpoint:
            self.errors.append(f"{where}: the checkpoint of step {saved_before} is lost")
        if kill.signal == "SIGTERM" and kill.moment != "start" and kill.saved_step != kill.finished_step:
            self.errors.append(f"{where}: saved step {kill.saved_step}, finished step {kill.finished_step}")


def end_survivors(run_dir: Path) -> int:
    """Gives the processes of a run that has ended some seconds to end too, then kills and counts those left (Linux)."""
    deadline = time.monotonic() + WORKERS_END_WITHIN_S
    while (left := _processes_of(run_dir)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def _processes_of(run_dir: Path) -> list[int]:
    """Those that inherited the mark, however they were started; zombies have no environment any more."""
    mark, found = f"{RUN_VARIABLE}={run_dir}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has just ended, or is another user's
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def saved_step(run_dir: Path) -> int:
    """Step of the newest whole checkpoint; 0 without one."""
    path = newest_whole(run_dir / "checkpoints")
    return int(read_checkpoint(path)["global_step"]) if path is not None else 0


def differences(one: Path, other: Path) -> list[str]:
    """What is unequal between two finished runs: checkpoints bit for bit, curves and figures as text."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (_leaves(read_checkpoint(run / "checkpoints" / name), name) for run in (one, other))
        found += sorted(first.keys() ^ second.keys())
        found += [where for where in first.keys() & second.keys() if not _same(first[where], second[where])]
    curves = [
        {(r["step"], r["train/loss"]) for r in _rows(run) if r.get("train/loss")} for run in (one, other)
    ]
    if curves[0] != curves[1]:
        found.append(f"metrics.csv: {len(curves[0] ^ curves[1])} losses differ")
    figures = [_without_speed(json.loads((run / "metrics.json").read_text())) for run in (one, other)]
    if figures[0] != figures[1]:
        found.append("metrics.json differs")
    return found


def _leaves(value: Any, where: str) -> dict[str, Any]:
    """What a checkpoint holds by its path; what measures time is left out."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        return {where: value}
    parts = (_leaves(part, f"{where}/{key}") for key, part in _without_speed(value).items())
    return {path: leaf for part in parts for path, leaf in part.items()}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _without_speed(figures: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in figures.items() if not str(k).startswith("speed/") and k != "images_per_s"}


def _rows(run_dir: Path) -> list[dict[str, str]]:
    """Whole rows of the curve."""
    return AppendingCSVLogger(run_dir).rows()


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # renamed meanwhile
        return 0.0
