"""Time of the query of `networks.liif` beside the textbook's, which is the same function.

    python -m benchmarks.liif_query [cells=64 scale=8 unfold=false channels=128 num_rounds=3 threads=1]

Weights and features are new: they change no time. The two take turns, and their pictures are compared. The clock is that of
the processor, summed over threads, so that others' work on the machine counts little.
"""

import sys
import time
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.textbook_liif import textbook
from doors.options import parse
from lightning_modules.options import option
from networks.liif import LiifQuery
from runs.cli import run_door

USAGE = "python -m benchmarks.liif_query [cells=64 scale=8 unfold=false ...]"


@dataclass(frozen=True)
class QueryOptions:
    """Options of the benchmark; the defaults are Kim and Kim's decoder, unfold=true channels=64 is LIIF."""

    cells: int = option("side of the grid of features", 64)
    scale: float = option("side of the picture over side of the grid", 8.0)
    channels: int = option("of the features", 128)
    unfold: bool = option("whether the query sees the cells around", False)
    num_rounds: int = option("each of the two takes this many turns, one after the other", 3)
    threads: int = option("of the processor", 1)


@torch.no_grad()
def measure(options: QueryOptions) -> dict[str, float]:
    """Median seconds of the processor each way, their ratio, and the largest difference of the pictures over their standard deviation."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    query = LiifQuery(options.channels, unfold=options.unfold)
    features = torch.randn(1, options.channels, options.cells, options.cells)
    side = round(options.cells * options.scale)
    seconds: dict[str, list[float]] = {"exact": [], "textbook": []}
    pictures = {}
    for _ in range(options.num_rounds + 1):  # the first is to warm up
        for name in seconds:
            start = time.process_time()
            if name == "exact":
                pictures[name] = query(query.lift(features), (side, side))
            else:
                pictures[name] = textbook(query, features, (side, side))
            seconds[name].append(time.process_time() - start)
    exact, plain = (median(values[1:]) for values in seconds.values())
    difference = (pictures["exact"] - pictures["textbook"]).abs().max() / pictures["textbook"].std()
    ratio = median(b / a for a, b in zip(*(values[1:] for values in seconds.values()), strict=True))
    return {"exact_s": exact, "textbook_s": plain, "ratio": ratio, "difference": difference.item()}


def main() -> None:
    """Parses the options, measures, prints."""
    options = parse(QueryOptions, sys.argv[1:], USAGE).refuse(method=True).door
    found = measure(options)
    side = round(options.cells * options.scale)
    print(  # noqa: T201
        f"{side} x {side} pixels of {options.cells} x {options.cells} cells with {options.channels} channels, "
        f"unfold={str(options.unfold).lower()}, {torch.get_num_threads()} threads: {found['exact_s']:.2f} s, textbook "
        f"{found['textbook_s']:.2f} s; ratio {found['ratio']:.2f}; largest difference {found['difference']:.1e} of the "
        "standard deviation"
    )


if __name__ == "__main__":
    run_door(main)
