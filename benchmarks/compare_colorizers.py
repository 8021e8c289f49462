"""Compares colorizers on the same photos: quality with its spread, cost, diversity, and a page to judge by eye.

    python -m benchmarks.compare_colorizers methods="ControlNet=colorize_controlnet; Bridge=RUN_A|RUN_B|RUN_C" \
        datamodule=photos datamodule.root=DIR output=DIR [split=val] [seeds=0,1,2] [limit=N] [weights_dir=DIR]

A method is one run, or several runs joined by | that differ in the seed of their training. Each run draws all photos
with each sampling seed; one whose results do not depend on the seed draws once. See docs/methods/comparison.md.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.colorizer_costs import evaluations_per_image, parameters, seconds_per_image, training_images
from benchmarks.colorizer_figures import Figures, Spread, spread
from benchmarks.colorizer_methods import (
    GREY,
    MEAN_COLOUR,
    TRUTH,
    baseline_pictures,
    load_methods,
    parse_methods,
)
from benchmarks.colorizer_page import PhotoColumn, page_text
from benchmarks.colorizer_photos import (
    Photos,
    depends_on_seed,
    draw_all,
    eight_bit,
    evenly,
    photos_datamodule,
    plain_draw,
    read_photos,
    whole_numbers,
    yes_or_no,
)
from benchmarks.colorizer_table import Row, cells, markdown, print_table, used_columns
from runs.cli import run_door
from runs.evaluation import mean_chroma
from runs.folder import write_text
from runs.load import Run
from runs.logs import quiet_libraries
from runs.options import option, parse
from runs.prediction import pick_device

USAGE = (
    'python -m benchmarks.compare_colorizers methods="NAME=RUN|RUN; NAME=RUN" output=DIR '
    "[datamodule=photos datamodule.root=DIR] [split=val] [seeds=0,1,2]"
)
NUM_PAGE_PHOTOS, MAX_PAGE_SEEDS = 16, 3


@dataclass(frozen=True)
class CompareOptions:
    """Options of the comparison."""

    methods: str = option("NAME=RUN|RUN; NAME=RUN: run folders, checkpoint files or names in pretrained/")
    output: str = option("folder for comparison.json, comparison.md and comparison.html")
    split: str = option("train, val or test", "val")
    seeds: str = option("sampling seeds, comma-separated", "0,1,2")
    limit: int | None = option("so many photos, evenly spread over the split; all if not given", None)
    captions: str = option("true: the photos' captions are the prompts", "false")
    weights_dir: str | None = option("folder with SqueezeNet weights: adds the Frechet distance", None)
    colorfulness: str = option("absolute (as in recent papers' code) | hasler (the original)", "absolute")
    rounds: int = option("turns of the timing, of which the median is taken", 7)
    device: str = option("auto, cpu, cuda ...", "auto")


def compare(options: CompareOptions, overrides: list[str]) -> Path:
    """Draws, measures, writes the three files, prints the table, and returns the page.

    Raises:
        FileNotFoundError, ValueError: no such run, data or weights, or an option that makes no sense.
    """
    methods, seeds = parse_methods(options.methods), whole_numbers("seeds", options.seeds)
    if options.rounds < 1:
        raise ValueError(f"rounds={options.rounds} times nothing; give at least 1")
    with_captions = yes_or_no("captions", options.captions)
    device = pick_device(options.device)
    runs, sizes = load_methods(methods, device)
    first = next(iter(runs.values()))[0]
    datamodule = photos_datamodule(first.config, overrides, sizes)
    photos = read_photos(datamodule, options.split, limit=options.limit, with_captions=with_captions)
    figures = Figures(
        eight_bit(photos.image),
        variant=options.colorfulness,  # type: ignore[arg-type]  # checked by the metric
        weights_dir=options.weights_dir,
    )
    costs = {name: [_costs(run, photos) for run in of] for name, of in runs.items()}
    check_alike(costs)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)

    baselines = baseline_pictures(first.module, photos, mean_chroma(datamodule, options.split)[0])
    chosen = evenly(len(photos), NUM_PAGE_PHOTOS)
    columns = {name: _page_column(name, "", figures, images, chosen) for name, images in baselines.items()}
    rows, drawn_columns = [], []
    seconds = _seconds(runs, photos, options.rounds)
    for name, sources in methods.items():
        row, pictures = _measured(name, sources, runs[name], photos, seeds, figures)
        row = replace(
            row,
            figures={**row.figures, **_columns(costs[name]), "seconds_per_image": spread([seconds[name]])},
        )
        rows.append(row)
        drawn_columns += [_page_column(name, label, figures, p, chosen) for label, p in pictures.items()]
    rows += [_baseline_row(name, figures(images)) for name, images in baselines.items()]

    shown = [columns[GREY], *drawn_columns, columns[MEAN_COLOUR], columns[TRUTH]]
    report = {
        "options": asdict(options),
        "overrides": overrides,
        "num_photos": len(photos),
        "device": str(device),
        "num_threads": torch.get_num_threads(),
        "rows": {row.name: _reported(row) for row in rows},
    }
    title = _title(options, photos, seeds, device)
    write_text(folder / "comparison.json", json.dumps(report, indent=2) + "\n")
    write_text(folder / "comparison.md", markdown(rows, title))
    write_text(folder / "comparison.html", page_text(title, rows, shown, [photos.names[i] for i in chosen]))
    _show(rows, title)
    _say(f"written to {folder}")
    return folder / "comparison.html"


def _seconds(runs: Mapping[str, Sequence[Run]], photos: Photos, num_rounds: int) -> dict[str, float]:
    """Seconds for one photo of each method, by its first run."""
    _say(f"timing {len(runs)} methods")
    return seconds_per_image(
        {name: plain_draw(of[0].module) for name, of in runs.items()}, photos, num_rounds
    )


def _measured(
    name: str,
    sources: list[str],
    runs: list[Run],
    photos: Photos,
    seeds: list[int],
    figures: Figures,
) -> tuple[Row, dict[str, Tensor]]:
    """A method's row, and the pictures of its first run by what tells them apart."""
    draws: list[dict[str, float | str]] = []
    several: list[dict[str, float]] = []
    pictures: dict[str, Tensor] = {}
    noisy = False
    for number, (source, run) in enumerate(zip(sources, runs, strict=True)):
        draw = plain_draw(run.module)
        varies = depends_on_seed(draw, photos, seeds[0])
        noisy |= varies
        drawn = []
        for seed in seeds if varies else seeds[:1]:
            start = time.perf_counter()
            drawn.append(draw_all(draw, photos, seed))
            draws.append({"run": source, "seed": seed, **figures(drawn[-1])})
            _say(f"{name}: run {number + 1} of {len(runs)}, seed {seed}, {time.perf_counter() - start:.1f} s")
        if len(drawn) > 1:
            several.append(figures.diversity(drawn))
        if number == 0:
            labels = [f"seed {seed}" for seed in seeds] if varies else [""]
            pictures = dict(list(zip(labels, drawn, strict=False))[:MAX_PAGE_SEEDS])
    values = {**_columns(draws), **_columns(several), "num_draws": spread([len(draws)])}
    return Row(name, values, sources, noisy, draws), pictures


def _costs(run: Run, photos: Photos) -> dict[str, float]:
    few = photos.part(0, 2)
    counts: dict[str, float] = {
        "evaluations_per_image": evaluations_per_image(run.module, plain_draw(run.module), few),
        **parameters(run.module),
    }
    images = training_images(run)
    return counts if images is None else counts | {"training_images": images}


def check_alike(costs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Raises ValueError where runs joined as one method are not: their mean would be of two different things."""
    for name, entries in costs.items():
        counts = sorted({entry["evaluations_per_image"] for entry in entries})
        if len(counts) > 1:
            listed = " and ".join(f"{count:g}" for count in counts)
            raise ValueError(
                f"methods= joins runs of '{name}' that take {listed} network evaluations; give runs of other settings a "
                "name of their own"
            )


def _columns(entries: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Spread of every figure that all entries have."""
    common = [k for k, v in entries[0].items() if not isinstance(v, str)] if entries else []
    kept = [k for k in common if k != "seed" and all(k in entry for entry in entries)]
    return {k: spread([entry[k] for entry in entries]) for k in kept}


def _baseline_row(name: str, values: Mapping[str, float]) -> Row:
    return Row(name, {key: spread([value]) for key, value in values.items()})


def _page_column(name: str, label: str, figures: Figures, images: Tensor, chosen: list[int]) -> PhotoColumn:
    errors = figures.delta_e(images)[chosen].tolist()
    return PhotoColumn(name, label, images[chosen], errors)


def _reported(row: Row) -> dict[str, Any]:
    return {
        "runs": list(row.runs),
        "depends_on_seed": row.depends_on_seed,
        "figures": {key: value._asdict() for key, value in row.figures.items()},
        "draws": list(row.draws),
    }


def _title(options: CompareOptions, photos: Photos, seeds: list[int], device: torch.device) -> str:
    prompts = "captions as prompts" if options.captions == "true" else "no prompts"
    return (
        f"{len(photos)} photos of the {options.split} split at {photos.image.shape[-1]} pixels, {prompts}, sampling seeds "
        f"{', '.join(map(str, seeds))}, on {device.type}."
    )


def _show(rows: Sequence[Row], title: str) -> None:
    columns = used_columns(rows)
    lines = [[row.name, *cells(row, columns)] for row in rows]
    print_table(["", *[column.title for column in columns]], lines, title)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Parses the options and compares."""
    quiet_libraries()
    compare(*parse(CompareOptions, sys.argv[1:], USAGE))


if __name__ == "__main__":
    run_door(main)
