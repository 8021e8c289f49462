"""A long run of a small training: does it grow, leak handles, or slow down?

python -m benchmarks.endurance [num_steps=2000]
"""

import logging
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from doors.options import parse
from lightning_modules.options import option
from runs.choices import CONF
from runs.cli import run_door
from runs.config import resolved
from runs.folder import run_folder
from runs.logs import quiet_libraries
from runs.training import parts

USAGE = "python -m benchmarks.endurance [num_steps=2000]"
MAX_GROWTH_MIB = 20.0
MAX_SLOWDOWN = 0.1
SETTLED = 0.1  # of the steps: what is filled once is full by then
OVERRIDES = """
    experiment=autoencoder module.vae.block_out_channels=[8,8,8] module.vae.norm_num_groups=4
    datamodule.size_px=32 datamodule.batch_size=4 trainer=cpu trainer.log_every_n_steps=10
    trainer.val_check_interval=100 trainer.limit_val_batches=2 trainer.enable_progress_bar=false
    callbacks.last.every_n_steps=50 callbacks.samples.num_images=2 module.num_warmup_steps=10
"""


@dataclass(frozen=True)
class EnduranceOptions:
    """Options of the run."""

    num_steps: int = option("optimiser steps, at least 200", 2000)


@dataclass(frozen=True)
class Endurance:
    """What changed between the settled run and its end."""

    growth_mib: float  # of the resident memory
    slowdown: float  # 1 - steps/s of the last tenth over the first, by the process's own CPU time
    new_files: int
    new_threads: int
    steps_per_s: float  # by the clock

    def faults(self) -> list[str]:
        """What exceeds the promise."""
        found = []
        if self.growth_mib >= MAX_GROWTH_MIB:
            found.append(f"memory grew by {self.growth_mib:.1f} MiB, allowed {MAX_GROWTH_MIB:g}")
        if self.slowdown > MAX_SLOWDOWN:
            slower = f"{100 * self.slowdown:.1f} % slower than the first"
            found.append(f"the last tenth is {slower}, allowed {100 * MAX_SLOWDOWN:g} %")
        if self.new_files > 0 or self.new_threads > 0:
            found.append(f"{self.new_files} more open files and {self.new_threads} more threads")
        return found


class Meter(Callback):
    """Notes CPU time at each step, memory, open files and threads at each hundredth of the run."""

    def __init__(self) -> None:
        self.cpu_s: list[float] = []
        self.states: list[tuple[float, int, int]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.cpu_s.append(time.process_time())
        if trainer.global_step % (trainer.max_steps // 100) == 0:
            self.states.append((resident_mib(), len(os.listdir("/proc/self/fd")), threading.active_count()))

    def figures(self, seconds: float) -> Endurance:
        """The figures of a finished run that took `seconds`."""
        steps = [after - before for before, after in zip(self.cpu_s, self.cpu_s[1:], strict=False)]
        tenth = len(steps) // 10
        # Medians: validations and checkpoints fall into both tenths, but not equally often.
        first, last = median(steps[:tenth]), median(steps[-tenth:])
        settled, *_, end = self.states[int(SETTLED * len(self.states)) - 1 :]
        return Endurance(
            growth_mib=end[0] - settled[0],
            slowdown=1 - first / last,
            new_files=end[1] - settled[1],
            new_threads=end[2] - settled[2],
            steps_per_s=len(self.cpu_s) / seconds,
        )


def resident_mib() -> float:
    """Memory of this process now, from the system's own account (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def endure(num_steps: int, folder: Path) -> Endurance:
    """Trains the small autoencoder as train.py would, with all default callbacks, and measures.

    Raises:
        ValueError: fewer than 200 steps.
    """
    if num_steps < 200:
        raise ValueError(f"num_steps is {num_steps}; expected at least 200")
    words = [*OVERRIDES.split(), f"trainer.max_steps={num_steps}", f"run_dir={folder / 'run'}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolved(compose("train", words))
    meter, begun = Meter(), time.monotonic()
    with run_folder(config):
        module, datamodule, trainer = parts(config)
        trainer.callbacks.append(meter)
        trainer.fit(module, datamodule=datamodule)
    return meter.figures(time.monotonic() - begun)


def main() -> None:
    """Runs and prints; the exit code is 1 if a promise is broken."""
    options = parse(EnduranceOptions, sys.argv[1:], USAGE).refuse(method=True).door
    logging.getLogger("lightning").setLevel(logging.WARNING)
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = endure(options.num_steps, Path(folder))
    Console(width=110).print(
        f"{options.num_steps} steps at {found.steps_per_s:.1f} steps/s: memory {found.growth_mib:+.1f} MiB, speed of the "
        f"last tenth {-100 * found.slowdown:+.1f} %, open files {found.new_files:+d}, threads {found.new_threads:+d}"
    )
    if found.faults():
        sys.exit(f"error: {'; '.join(found.faults())}")


if __name__ == "__main__":
    run_door(main)
