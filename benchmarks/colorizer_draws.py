"""A method's row from its training runs and sampling seeds, and the pictures of its first run.

Seeds are averaged within a run and the spread is taken over runs: draws of one run share its weights, so counting them
as draws of their own would make a noisy method look more certain than one that draws once.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from benchmarks.colorizer_costs import evaluations_per_image, parameters, training_images
from benchmarks.colorizer_figures import Figures, Spread, spread
from benchmarks.colorizer_methods import Entrant
from benchmarks.colorizer_photos import Photos, draw_seeds
from benchmarks.colorizer_table import Row


def measured(
    name: str,
    entrants: Sequence[Entrant],
    photos: Photos,
    seeds: list[int],
    figures: Figures,
) -> tuple[Row, dict[str, Tensor]]:
    """A method's row without its costs, and the pictures of its first run by what tells them apart."""
    draws: list[dict[str, float | str]] = []
    means: list[dict[str, float]] = []
    deviations: list[dict[str, float]] = []
    pictures: dict[str, Tensor] = {}
    noisy = False
    for number, entrant in enumerate(entrants):
        start = time.perf_counter()
        drawn, varies = draw_seeds(entrant.draw, photos, seeds)
        noisy |= varies
        found = [figures(images) for images in drawn]
        over_seeds = columns(found)
        means.append({key: value.mean for key, value in over_seeds.items()})
        if len(drawn) > 1:
            means[-1] |= figures.diversity(drawn)
            deviations.append({key: value.std or 0.0 for key, value in over_seeds.items()})
        draws += [
            {"run": entrant.source.text, "seed": seed, **entry}
            for seed, entry in zip(seeds, found, strict=False)
        ]
        if number == 0:
            labels = [f"seed {seed}" for seed in seeds] if varies else [""]
            pictures = dict(zip(labels, drawn, strict=True))
        sys.stdout.write(
            f"{name}: run {number + 1} of {len(entrants)}, {len(drawn)} draws, {time.perf_counter() - start:.1f} s\n"
        )
        sys.stdout.flush()
    sampling = {key: value.mean for key, value in columns(deviations).items()}
    values = {**columns(means), "num_runs": spread([len(entrants)])}
    if sampling:
        values["sampling_spread"] = spread([sampling["delta_e2000"]])
    runs = [entrant.source.text for entrant in entrants]
    return Row(name, values, runs, noisy, sampling, draws), pictures


def costs(entrant: Entrant, photos: Photos) -> dict[str, float]:
    """What the run's results and training take; the photos it was trained on only where its folder tells."""
    counts: dict[str, float] = {
        "evaluations_per_image": evaluations_per_image(entrant.module, entrant.draw, photos.part(0, 1)),
        **parameters(entrant.module),
    }
    images = training_images(entrant.run)
    return counts if images is None else counts | {"training_images": images}


def columns(entries: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Spread of every figure that all entries have."""
    common = [key for key in entries[0] if all(key in entry for entry in entries)] if entries else []
    return {key: spread([entry[key] for entry in entries]) for key in common}
