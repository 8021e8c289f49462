"""How often a colour word in the prompt moves the mean hue toward that colour.

    python -m benchmarks.text_guidance run=colorize_controlnet datamodule=photos datamodule.root=DIR [split=val] [limit=100]

For each photo and each colour word the result with the prompt "WORD" is compared with the result without a prompt from
the same noise. The mean hue is the angle of the mean (a*, b*); the word worked if that angle came nearer to the
word's own (color.names.hue_of).
"""

import json
import sys
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.colorizer_photos import draw_all, load_colorizer, photos_datamodule, plain_draw, read_photos
from color.lab import rgb_to_lab
from color.names import hue_of
from runs.cli import run_door
from runs.drawing import check_guidance, check_steps
from runs.logs import quiet_libraries
from runs.options import option, parse
from runs.prediction import pick_device

USAGE = (
    "python -m benchmarks.text_guidance run=RUN [datamodule=photos datamodule.root=DIR split=val limit=100]"
)


@dataclass(frozen=True)
class GuidanceOptions:
    """Options of the measurement."""

    run: str = option("run folder, checkpoint file, or a name in pretrained/")
    split: str = option("train, val or test", "val")
    words: str = option("colour words, comma-separated", "red,orange,yellow,green,blue,purple,pink")
    limit: int | None = option("so many photos, evenly spread over the split; all if not given", None)
    steps: int | None = option("network evaluations; the run's own if not given", None)
    guidance: float | None = option("guidance scale, 1 = off; the run's own if not given", None)
    seed: int = option("of the noise", 0)
    device: str = option("auto, cpu, cuda ...", "auto")


def mean_hue(image: Tensor) -> Tensor:
    """Angle in degrees (N,) of the mean (a*, b*) of images uint8 (N, 3, H, W)."""
    a, b = rgb_to_lab(image.float() / 255)[:, 1:].mean((2, 3)).unbind(1)
    return torch.rad2deg(torch.atan2(b, a))


def distance(hue: Tensor, target: float) -> Tensor:
    """Angle in degrees between hues (N,) and a target, 0 to 180."""
    return ((hue - target + 180) % 360 - 180).abs()


def measure(options: GuidanceOptions, overrides: list[str]) -> dict[str, float]:
    """Share of photos in [0, 1] for each word, and over all.

    Raises:
        FileNotFoundError, ValueError: no such run or data, or an option that makes no sense.
    """
    check_steps(options.steps)
    check_guidance(options.guidance)
    try:
        targets = {word.strip(): hue_of(word.strip()) for word in options.words.split(",")}
    except ValueError as error:
        raise ValueError(f"words={options.words}: {error}") from None
    run = load_colorizer(options.run, pick_device(options.device))
    sizes = {options.run: int(run.config["datamodule"]["size_px"])}
    photos = read_photos(photos_datamodule(run.config, overrides, sizes), options.split, limit=options.limit)
    draw = plain_draw(run.module, num_steps=options.steps, guidance_scale=options.guidance)  # type: ignore[arg-type]
    plain = mean_hue(draw_all(draw, photos, options.seed))
    moved: dict[str, Tensor] = {}
    for word, target in targets.items():
        asked = mean_hue(draw_all(draw, replace(photos, captions=[word] * len(photos)), options.seed))
        moved[word] = distance(asked, target) < distance(plain, target)
    shares = {word: results.float().mean().item() for word, results in moved.items()}
    return shares | {"all": torch.stack(list(moved.values())).float().mean().item()}


def main() -> None:
    """Parses the options, measures, prints JSON."""
    quiet_libraries()
    sys.stdout.write(json.dumps(measure(*parse(GuidanceOptions, sys.argv[1:], USAGE)), indent=2) + "\n")


if __name__ == "__main__":
    run_door(main)
