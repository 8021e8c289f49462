"""One training step of the colorizer: bare PyTorch, our trainer, and our trainer with caches.

python -m benchmarks.step_time [size_px=64 batch_size=16 num_rounds=5 num_steps=20 device=auto output=FILE]
"""

import json
import logging
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import Bare, Ours, make_photos
from doors.options import parse
from doors.predict import pick_device
from lightning_modules.options import option
from runs.cli import run_door
from runs.logs import quiet_libraries

USAGE = "python -m benchmarks.step_time [size_px=64 batch_size=16 num_rounds=5 num_steps=20 ...]"
BARE, TRAINER, CACHED = "bare PyTorch", "trainer", "trainer, cached"


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of the benchmark."""

    size_px: int = option("side of the images, a multiple of 16", 64)
    batch_size: int = option("images per step", 16)
    num_rounds: int = option("each contender takes this many turns, one after the other", 5)
    num_steps: int = option("steps per turn", 20)
    num_warmup_steps: int = option("steps of each contender before the first turn", 5)
    device: str = option("auto, cpu, cuda ...", "auto")
    output: str | None = option("JSON file for the figures", None)


def measure(options: BenchmarkOptions) -> dict[str, Any]:
    """Milliseconds per step of every turn, by contender, and the ratios of their medians."""
    device = pick_device(options.device)
    fed = (make_photos(options.size_px, options.batch_size), options.batch_size, device)
    turns: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        contenders: dict[str, Callable[[int], float]] = {
            BARE: Bare(*fed),
            TRAINER: Ours(*fed, folder / "plain", cached=False),
            CACHED: Ours(*fed, folder / "cached", cached=True),
        }
        for run in contenders.values():
            run(options.num_warmup_steps)
        # Turns in rotation: what slows the machine for a while slows all of them.
        for _ in range(options.num_rounds):
            for name, run in contenders.items():
                turns.setdefault(name, []).append(1000 * run(options.num_steps) / options.num_steps)
    medians = {name: median(values) for name, values in turns.items()}
    return {
        "options": asdict(options),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "lightning": L.__version__,
        "ms_per_step": turns,
        "median_ms": medians,
        "trainer_over_bare": medians[TRAINER] / medians[BARE],
        "cached_over_uncached_images_per_s": medians[TRAINER] / medians[CACHED],
    }


def show(report: dict[str, Any]) -> None:
    """Prints the table and the two ratios with the targets."""
    size = report["options"]["batch_size"]
    table = Table(title=f"{report['device']}, {report['threads']} threads, torch {report['torch']}")
    for column in ("", "ms per step (median)", "least", "most", "images/s", "time of bare"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in report["median_ms"].items():
        turns = report["ms_per_step"][name]
        cells = [f"{value:.1f}", f"{min(turns):.1f}", f"{max(turns):.1f}", f"{1000 * size / value:.1f}"]
        table.add_row(name, *cells, f"{value / report['median_ms'][BARE]:.3f}")
    console = Console(width=100)
    console.print(table)
    console.print(f"trainer / bare step time: {report['trainer_over_bare']:.3f} (target at most 1.05)")
    ratio = report["cached_over_uncached_images_per_s"]
    console.print(f"cached / uncached images/s: {ratio:.2f} (target at least 1.5)")


def main() -> None:
    """Parses the options, measures, prints."""
    options = parse(BenchmarkOptions, sys.argv[1:], USAGE).refuse(method=True).door
    quiet_libraries()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Lightning's remarks at the start of each turn
    start = time.perf_counter()
    report = measure(options) | {"seconds": round(time.perf_counter() - start, 1)}
    show(report)
    if options.output is not None:
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_door(main)
