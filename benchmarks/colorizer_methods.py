"""The methods of a comparison as a user names them, their runs, and the baselines beside them.

Shapes: N photos, H/W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.colorizer_photos import Draw, Photos, draw_all, eight_bit, load_colorizer, plain_draw
from benchmarks.colorizer_sources import Source, parse_source
from color.lab import grey_image, lightness
from color.transfer import transfer_chroma_exact
from lightning_modules.colorizer import Colorizer
from runs.evaluation import MEAN_COLOUR, one_chroma
from runs.load import Run, locate
from runs.vividness import AUTO, load_ranker

GREY, CEILING, TRUTH = "grey", "autoencoder's ceiling", "truth"
BASELINES = (GREY, MEAN_COLOUR, CEILING, TRUTH)


@dataclass(frozen=True)
class Entrant:
    """A run that takes part, and how it draws."""

    source: Source
    run: Run
    draw: Draw

    @property
    def module(self) -> Any:
        """Its colorizer."""
        return self.run.module


def parse_methods(text: str) -> dict[str, list[Source]]:
    """Runs by the name of their method.

    Raises:
        ValueError: no method, no name, a name or run given twice, settings that make no sense, or the name of a
            baseline.
    """
    methods: dict[str, list[Source]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, listed = (word.strip() for word in part.partition("="))
        sources = [parse_source(run.strip()) for run in listed.split("|")]
        runs = [source.run for source in sources]
        if not (name and equals and all(runs)):
            raise ValueError(
                f"methods= has '{part}', which is not of the form NAME=RUN or NAME=RUN|RUN; put a semicolon between methods"
            )
        if name in methods or name in BASELINES:
            what = "is the name of a baseline" if name in BASELINES else "stands there twice"
            raise ValueError(f"methods= has the name '{name}', which {what}; choose another name")
        if len(set(runs)) < len(runs):
            raise ValueError(f"methods= names a run of '{name}' twice: {listed}; runs must differ")
        methods[name] = sources
    if not methods:
        raise ValueError("methods= names no method; give NAME=RUN|RUN; NAME=RUN")
    return methods


def load_methods(
    methods: Mapping[str, Sequence[Source]], device: torch.device, ranker: str | None
) -> dict[str, list[Entrant]]:
    """The runs of each method; one that several methods name is loaded once.

    Args:
        methods: as `parse_methods` gives them.
        device: where they draw.
        ranker: for the runs with chroma=auto, as in `load_ranker`.

    Raises:
        FileNotFoundError, ValueError: no such run or ranker, one of another kind, or a ranker that nothing asks.
    """
    sources = [source for entries in methods.values() for source in entries]
    for source in sources:
        locate(source.run)  # a wrong name is found before any is built
    asked = AUTO if any(source.settings.chroma == AUTO for source in sources) else None
    if ranker and not asked:
        raise ValueError(
            f"ranker={ranker} has no effect, as no run of methods= draws with chroma=auto; write RUN@chroma=auto, or leave "
            "ranker out"
        )
    scores = load_ranker(asked, ranker, device)
    runs = {name: load_colorizer(name, device) for name in dict.fromkeys(source.run for source in sources)}

    def entrant(source: Source) -> Entrant:
        run = runs[source.run]
        return Entrant(source, run, plain_draw(run.module, **source.settings.for_drawing(scores)))

    return {name: [entrant(source) for source in entries] for name, entries in methods.items()}


@torch.no_grad()
def baseline_pictures(module: Colorizer, photos: Photos, mean_chroma: Tensor) -> dict[str, Tensor]:
    """What every method has to beat, and what none can: uint8 (N, 3, H, W) by name."""
    given = lightness(photos.image)

    def decoded(part: Photos, _: int) -> Tensor:
        image = part.image.to(module.device)
        return transfer_chroma_exact(lightness(image), module.codec.decode(module.codec.encode(image)))

    return {
        GREY: eight_bit(grey_image(given)),
        MEAN_COLOUR: eight_bit(one_chroma(photos.image, mean_chroma)),
        CEILING: draw_all(decoded, photos, 0),
        TRUTH: eight_bit(photos.image),
    }
