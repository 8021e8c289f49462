"""What users set when they apply a model: each method's `Options`, a frozen dataclass of `option` fields."""

import dataclasses
import math
import os.path
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def option(
    help: str, default: Any = dataclasses.MISSING, *, parse: Callable[[str], Any] | None = None
) -> Any:
    """A dataclass field with its help text; without a default the option must be given.

    Args:
        help: one line, for `--help`.
        default: what holds if the user does not give it.
        parse: makes the value from the text after `=` and raises ValueError with a full sentence; None converts to
            the field's type (str, int or float).
    """
    return dataclasses.field(default=default, metadata={"help": help, "parse": parse})


def path(text: str) -> str:
    """A path of a user's: a shell leaves the `~` behind `KEY=` as it is."""
    return os.path.expanduser(text)


def size(text: str) -> tuple[int, int]:
    """(H, W) of a text like 512x768.

    Raises:
        ValueError: not two positive whole numbers.
    """
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ValueError(f"size={text} is not HxW in pixels, such as size=512x768")
    return int(height), int(width)


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of a method without options of its own."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What every method that draws samples takes.

    Example:
        >>> SamplingOptions(steps=4).num_samples
        1
    """

    steps: int | None = option("network evaluations; the run's own if not given", None)
    seed: int = option("of the noise: photo i depends on (seed, i) alone", 0)
    num_samples: int = option("results for each input", 1)

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps} is not a whole number of at least 1")
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples} asks for no result; give at least 1")
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise ValueError(f"seed={self.seed} does not fit in 64 bits; give a smaller number")


@dataclass(frozen=True, kw_only=True)
class PromptOptions(SamplingOptions):
    """Sampling of a method that takes text."""

    guidance: float | None = option("guidance scale, 1 = off; the run's own if not given", None)
    prompt: str = option("text condition", "")
    negative_prompt: str = option("text that guidance pushes away from", "")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance={self.guidance:g} is not a number from 0; 1 is off")
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if text != text.encode(errors="replace").decode():
                raise ValueError(f"{name}={text!r} is no UTF-8 text; write it in UTF-8")
