"""Time to draw a mask when the image is encoded once, and when it is at every step as in SegDiff's own code.

    python -m benchmarks.encode_once [experiment=segdiff size_px=128 steps=25 num_rounds=3 device=auto]

Weights are new: they change no time. The two take turns, and their masks are compared.
"""

import sys
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.contenders import composed
from doors.options import parse
from doors.predict import pick_device
from lightning_modules.options import option
from runs.cli import run_door
from runs.logs import quiet_libraries
from runs.training import build_module

USAGE = "python -m benchmarks.encode_once [experiment=segdiff size_px=128 steps=25 ...]"


@dataclass(frozen=True)
class EncodeOptions:
    """Options of the benchmark."""

    experiment: str = option("of masks drawn under an image", "segdiff")
    size_px: int = option("side of the image", 128)
    steps: int = option("network evaluations", 25)
    num_rounds: int = option("each of the two takes this many turns, one after the other", 3)
    device: str = option("auto, cpu, cuda ...", "auto")


def measure(options: EncodeOptions) -> dict[str, float]:
    """Median seconds of one mask each way, their ratio, and the largest difference of the probabilities."""
    config = composed(f"experiment={options.experiment}")
    module = build_module(config).to(pick_device(options.device)).eval()
    size = (1, 3, options.size_px, options.size_px)
    batch = {
        "image": torch.randint(0, 256, size, dtype=torch.uint8, device=module.device),
        "index": torch.zeros(1, dtype=torch.long, device=module.device),
    }
    chosen = module.Options(num_samples=1, steps=options.steps, window=options.size_px)
    denoise = module.denoise

    def again(x_t: Tensor, timestep: Tensor, _: object) -> Tensor:
        return denoise(x_t, timestep, module.condition(batch))

    seconds: dict[str, list[float]] = {"once": [], "every": []}
    drawn = {}
    for _ in range(options.num_rounds + 1):  # the first is to warm up
        for name, step in (("once", denoise), ("every", again)):
            module.denoise = step
            start = time.perf_counter()
            drawn[name] = module.results(batch, chosen)["probability"].cpu()  # waits for the device
            seconds[name].append(time.perf_counter() - start)
    once, every = (median(values[1:]) for values in seconds.values())
    difference = (drawn["once"] - drawn["every"]).abs().max().item()
    return {"once_s": once, "every_s": every, "ratio": every / once, "difference": difference}


def main() -> None:
    """Parses the options, measures, prints."""
    options = parse(EncodeOptions, sys.argv[1:], USAGE).refuse(method=True).door
    quiet_libraries()
    found = measure(options)
    print(  # noqa: T201
        f"{options.experiment}, {options.size_px} px, {options.steps} steps: {found['once_s']:.2f} s a mask with the image "
        f"encoded once, {found['every_s']:.2f} s at every step; ratio {found['ratio']:.2f}; "
        f"largest difference of the probabilities {found['difference']:.1e}"
    )


if __name__ == "__main__":
    run_door(main)
