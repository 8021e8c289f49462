"""How often a colour word in the prompt moves the mean hue toward that colour.

    python -m benchmarks.text_guidance run=colorize_controlnet datamodule=photos datamodule.root=DIR [split=val] [limit=100]

For each photo and each colour word the result with the prompt "WORD" is compared with the result without a prompt from
the same noise. The mean hue is the angle of the mean (a*, b*); the word worked if that angle came nearer to the
word's own (color.names.hue_of).
"""

import json
import sys
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from color.lab import rgb_to_lab
from color.names import hue_of
from doors.compare import with_datamodule
from doors.measure import batches
from doors.options import MeasureOptions, Words, method_options, parse
from doors.predict import pick_device
from lightning_modules.options import option
from runs.build import build
from runs.cli import run_door
from runs.load import load_run
from runs.logs import quiet_libraries
from tasks.base import main_result
from tasks.colorization import Colorization

USAGE = "python -m benchmarks.text_guidance run=RUN [datamodule=photos datamodule.root=DIR split=val ...]"


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(MeasureOptions):
    """Options of the measurement; steps=, guidance=, seed= ... are the method's."""

    run: str = option("run folder, checkpoint file, or a name in pretrained/")
    words: str = option("colour words, comma-separated", "red,orange,yellow,green,blue,purple,pink")


def mean_hue(image: Tensor) -> Tensor:
    """Angle in degrees (N,) of the mean (a*, b*) of images (N, 3, H, W) in [0, 1]."""
    a, b = rgb_to_lab(image.float())[:, 1:].mean((2, 3)).unbind(1)
    return torch.rad2deg(torch.atan2(b, a))


def distance(hue: Tensor, target: float) -> Tensor:
    """Angle in degrees between hues (N,) and a target, 0 to 180."""
    return ((hue - target + 180) % 360 - 180).abs()


def measure(words: Words[GuidanceOptions]) -> dict[str, float]:
    """Share of photos in [0, 1] for each word, and over all."""
    door = words.door
    try:
        targets = {word.strip(): hue_of(word.strip()) for word in door.words.split(",")}
    except ValueError as error:
        raise ValueError(f"words={door.words}: {error}") from None
    run = load_run(door.run)
    module = run.module.to(pick_device(door.device))
    if module.task is not Colorization:
        raise ValueError(f"{door.run} is a run of {type(module).__name__}, which colours no photos")
    plain, *asked = (
        method_options(type(module), words.method | prompt, GuidanceOptions)
        for prompt in ({}, *({"prompt": word} for word in targets))
    )
    datamodule = build(with_datamodule(run.config, words.overrides)["datamodule"], "datamodule")
    datamodule.setup("validate" if door.split == "val" else "test")
    moved: dict[str, list[Tensor]] = {word: [] for word in targets}
    for batch in batches(datamodule, door.split, door.limit or sys.maxsize, module.device):
        before = mean_hue(main_result(module.results(batch, plain)))
        for (word, target), options in zip(targets.items(), asked, strict=True):
            after = mean_hue(main_result(module.results(batch, options)))
            moved[word].append((distance(after, target) < distance(before, target)).float().cpu())
    shares = {word: torch.cat(results).mean().item() for word, results in moved.items()}
    return shares | {"all": fmean(shares.values())}


def main() -> None:
    """Parses the options, measures, prints JSON."""
    words = parse(GuidanceOptions, sys.argv[1:], USAGE)
    quiet_libraries()
    sys.stdout.write(json.dumps(measure(words), indent=2) + "\n")


if __name__ == "__main__":
    run_door(main)
