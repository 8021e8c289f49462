"""What predict and evaluate ask alike of a model: the options of drawing, as settings."""

from typing import Protocol

import torch

from lightning_modules.requests import DrawSettings
from runs.vividness import chroma_scale, load_ranker


class DrawOptions(Protocol):
    """Options that each door which draws has under these names."""

    @property
    def steps(self) -> int | None: ...
    @property
    def guidance(self) -> float | None: ...
    @property
    def negative_prompt(self) -> str: ...
    @property
    def chroma(self) -> str | None: ...
    @property
    def ranker(self) -> str | None: ...
    @property
    def seed(self) -> int: ...


def check_drawing(options: DrawOptions) -> None:
    """Raises a ValueError for options that make no sense with any model, before one is loaded."""
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"steps={options.steps} is no number of steps; give at least 1, or leave it out")
    chroma_scale(options.chroma, options.ranker)


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
