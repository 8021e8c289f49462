"""How often a colour word in the prompt moves the mean hue toward that colour.

    python -m benchmarks.text_guidance run=colorize_controlnet datamodule.root=DIR [split=val] [limit=100]

For each photo and each colour word the result with the prompt "WORD" is compared with the result without a prompt from
the same noise. The mean hue is the angle of the mean (a*, b*); the word worked if that angle came nearer to the
word's own (color.names.hue_of).
"""

import json
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from color.lab import lightness, rgb_to_lab
from color.names import hue_of
from lightning_modules.requests import DrawSettings
from runs.build import build
from runs.cli import run_door
from runs.load import load_run
from runs.options import option, parse
from runs.reading import with_datamodule

USAGE = "python -m benchmarks.text_guidance run=RUN datamodule.root=DIR [split=val] [limit=100]"


@dataclass(frozen=True)
class GuidanceOptions:
    """Options of the measurement."""

    run: str = option("run folder, checkpoint file, or a name in pretrained/")
    split: str = option("train, val or test", "val")
    words: str = option("colour words, comma-separated", "red,orange,yellow,green,blue,purple,pink")
    limit: int | None = option("first so many photos; all if not given", None)
    steps: int | None = option("network evaluations; the run's own if not given", None)
    guidance: float | None = option("guidance scale; the run's own if not given", None)
    seed: int = option("of the noise", 0)


def mean_hue(image: Tensor) -> Tensor:
    """Angle in degrees (B,) of the mean (a*, b*) of images (B, 3, H, W)."""
    a, b = rgb_to_lab(image)[:, 1:].mean((2, 3)).unbind(1)
    return torch.rad2deg(torch.atan2(b, a))


def distance(hue: Tensor, target: float) -> Tensor:
    """Angle in degrees between hues (B,) and a target, 0 to 180."""
    return ((hue - target + 180) % 360 - 180).abs()


@torch.no_grad()
def measure(options: GuidanceOptions, overrides: list[str]) -> dict[str, float]:
    """Share of photos in [0, 1] for each word, and over all."""
    run = load_run(options.run)
    datamodule = build(with_datamodule(run.config, overrides)["datamodule"], "datamodule")
    datamodule.setup("fit" if options.split == "train" else "validate" if options.split == "val" else "test")
    dataset = getattr(datamodule, f"{options.split}_dataset")
    settings = DrawSettings(num_steps=options.steps, guidance_scale=options.guidance, seed=options.seed)
    words = options.words.split(",")
    moved: dict[str, list[bool]] = {word: [] for word in words}
    count = min(len(dataset), options.limit or len(dataset))
    for start in range(0, count, 64):
        ids = list(range(start, min(start + 64, count)))
        given = lightness(torch.stack([dataset.load(i) for i in ids]))
        plain = mean_hue(run.module.colorize(given, [""] * len(ids), ids, settings))
        for word in words:
            asked = mean_hue(run.module.colorize(given, [word] * len(ids), ids, settings))
            target = hue_of(word)
            moved[word] += (distance(asked, target) < distance(plain, target)).tolist()
    shares = {word: sum(results) / len(results) for word, results in moved.items()}
    return shares | {"all": sum(map(sum, moved.values())) / sum(map(len, moved.values()))}


def main() -> None:
    """Parses the options, measures, prints JSON."""
    sys.stdout.write(json.dumps(measure(*parse(GuidanceOptions, sys.argv[1:], USAGE)), indent=2) + "\n")


if __name__ == "__main__":
    run_door(main)
