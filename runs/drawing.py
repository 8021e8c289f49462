"""What predict and evaluate ask alike of a model: the options of drawing, as settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lightning_modules.base import TranslationModule
from lightning_modules.requests import DrawSettings
from runs.options import option
from runs.vividness import chroma_scale, load_ranker


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Options that each door which draws has."""

    steps: int | None = option("network evaluations; the run's own if not given", None)
    guidance: float | None = option("guidance scale, 1 = off; the run's own if not given", None)
    negative_prompt: str = option("text that guidance pushes away from", "")
    chroma: str | None = option(
        "of a colorizer: 0 grey, 1 as drawn, auto = what the ranker picks; the run's own if not given", None
    )
    ranker: str | None = option(
        "for chroma=auto: a run of vividness_ranker, or clip:FOLDER_OR_HUB_ID; vividness_ranker if not given",
        None,
    )
    seed: int = option("of the noise: photo i depends on (seed, i) alone", 0)
    device: str = option("auto, cpu, cuda ...", "auto")


def check_drawing(options: DrawOptions) -> None:
    """Raises a ValueError for options that make no sense with any model, before one is loaded."""
    check_steps(options.steps)
    check_guidance(options.guidance)
    chroma_scale(options.chroma, options.ranker)


def check_steps(steps: int | None) -> None:
    """Raises a ValueError for a number of network evaluations below 1."""
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps} is not a whole number of at least 1")


def check_guidance(scale: float | None) -> None:
    """Raises a ValueError for a guidance scale that is negative or not finite."""
    if scale is not None and not 0 <= scale < math.inf:
        raise ValueError(f"guidance={scale:g} is not a number from 0; 1 is off")


def check_effect(module: TranslationModule, given: Mapping[str, Any]) -> None:
    """Raises a ValueError for an option that was given and changes nothing of this model's results.

    Args:
        module: the model.
        given: options by name; None, "" and False are not given.
    """
    words = [key for key, value in given.items() if value not in (None, "", False)]
    name = next((key for key in words if key not in module.door_options), None)
    if name is not None:
        raise ValueError(f"{type(module).__name__} takes no {name}=; leave it out")


def draw_settings(options: DrawOptions, device: torch.device, *, short_px: int | None = None) -> DrawSettings:
    """The settings that the options ask for, with the ranker of chroma=auto on the device.

    Args:
        options: of predict or evaluate.
        device: the model's.
        short_px: as in DrawSettings.

    Raises:
        FileNotFoundError, ValueError: no such ranker, or no such chroma.
    """
    return DrawSettings(
        num_steps=options.steps,
        guidance_scale=options.guidance,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
        chroma_scale=chroma_scale(options.chroma, options.ranker),
        ranker=load_ranker(options.chroma, options.ranker, device),
        short_px=short_px,
    )
