"""The methods of a comparison as a user names them, their runs, and the baselines beside them.

Shapes: N photos, H/W pixels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.colorizer_photos import Photos, draw_all, eight_bit, load_colorizer
from color.lab import grey_image, lightness
from color.transfer import transfer_chroma_exact
from lightning_modules.colorizer import Colorizer
from runs.evaluation import MEAN_COLOUR, one_chroma
from runs.load import Run, locate

GREY, CEILING, TRUTH = "grey", "autoencoder's ceiling", "truth"
BASELINES = (GREY, MEAN_COLOUR, CEILING, TRUTH)


def parse_methods(text: str) -> dict[str, list[str]]:
    """Runs by the name of their method.

    Raises:
        ValueError: no method, no name, a name or run given twice, or the name of a baseline.
    """
    methods: dict[str, list[str]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, listed = (word.strip() for word in part.partition("="))
        runs = [run.strip() for run in listed.split("|")]
        if not (name and equals and all(runs)):
            raise ValueError(
                f"methods= has '{part}', which is not of the form NAME=RUN or NAME=RUN|RUN; put a semicolon between methods"
            )
        if name in methods or name in BASELINES:
            what = "is the name of a baseline" if name in BASELINES else "stands there twice"
            raise ValueError(f"methods= has the name '{name}', which {what}; choose another name")
        if len(set(runs)) < len(runs):
            raise ValueError(f"methods= names a run of '{name}' twice: {listed}; runs must differ")
        methods[name] = runs
    if not methods:
        raise ValueError("methods= names no method; give NAME=RUN|RUN; NAME=RUN")
    return methods


def load_methods(
    methods: Mapping[str, Sequence[str]], device: torch.device
) -> tuple[dict[str, list[Run]], dict[str, int]]:
    """The runs of each method, and the side of the photos that each run was trained on.

    Raises:
        FileNotFoundError, ValueError: no such run, or one of another kind.
    """
    for source in (source for sources in methods.values() for source in sources):
        locate(source)  # a wrong name is found before any is built
    runs = {name: [load_colorizer(source, device) for source in sources] for name, sources in methods.items()}
    sizes = {
        source: int(run.config["datamodule"]["size_px"])
        for name, sources in methods.items()
        for source, run in zip(sources, runs[name], strict=True)
    }
    return runs, sizes


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
