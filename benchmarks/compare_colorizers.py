"""Compares colorizers on the same photos: quality with its spread, cost, diversity, and a page to judge by eye.

    python -m benchmarks.compare_colorizers methods="ControlNet=colorize_controlnet; Bridge=RUN_A|RUN_B|RUN_C" \
        datamodule=photos datamodule.root=DIR output=DIR [split=val] [seeds=0,1,2] [limit=N] [weights_dir=DIR]

A method is one run, or several runs joined by | that differ in the seed of their training. Each run draws all photos
with each sampling seed; one whose results do not depend on the seed draws once. A run may have settings of its own, as
in RUN@steps=1,chroma=0.6. See docs/methods/comparison.md.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.colorizer_alike import check_alike
from benchmarks.colorizer_costs import seconds_per_image
from benchmarks.colorizer_draws import columns, costs, measured
from benchmarks.colorizer_figures import Figures, spread
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
    eight_bit,
    evenly,
    photos_datamodule,
    read_photos,
    whole_numbers,
    yes_or_no,
)
from benchmarks.colorizer_table import Row, cells, markdown, print_table, used_columns
from runs.cli import run_door
from runs.evaluation import mean_chroma
from runs.folder import write_text
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

    methods: str = option(
        "NAME=RUN|RUN; NAME=RUN@steps=1,guidance=1,chroma=0.6: run folders, checkpoint files or names in pretrained/"
    )
    output: str = option("folder for comparison.json, comparison.md and comparison.html")
    split: str = option("train, val or test", "val")
    seeds: str = option("sampling seeds, comma-separated", "0,1,2")
    limit: int | None = option("so many photos, evenly spread over the split; all if not given", None)
    captions: str = option("true: the photos' captions are the prompts", "false")
    ranker: str | None = option(
        "for RUN@chroma=auto: a run of vividness_ranker, or clip:FOLDER_OR_HUB_ID; vividness_ranker if not given",
        None,
    )
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
    entrants = load_methods(methods, device, options.ranker)
    check_alike(entrants)
    everyone = [entrant for of in entrants.values() for entrant in of]
    first = everyone[0].run
    sizes = {e.source.run: int(e.run.config["datamodule"]["size_px"]) for e in everyone}
    datamodule = photos_datamodule(first.config, overrides, sizes)
    photos = read_photos(datamodule, options.split, limit=options.limit, with_captions=with_captions)
    figures = Figures(
        eight_bit(photos.image),
        variant=options.colorfulness,  # type: ignore[arg-type]  # checked by the metric
        weights_dir=options.weights_dir,
    )
    cost = {name: columns([costs(entrant, photos) for entrant in of]) for name, of in entrants.items()}
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)

    ab, chroma_source = mean_chroma(datamodule, options.split)
    baselines = baseline_pictures(first.module, photos, ab)
    chosen = evenly(len(photos), NUM_PAGE_PHOTOS)
    beside = {name: _page_column(name, "", figures, images, chosen) for name, images in baselines.items()}
    rows, drawn_columns = [], []
    _say(f"timing {len(methods)} methods")
    draws = {name: of[0].draw for name, of in entrants.items()}
    seconds = seconds_per_image(draws, photos, options.rounds)
    for name, of in entrants.items():
        row, pictures = measured(name, of, photos, seeds, figures)
        row_figures = {**row.figures, **cost[name], "seconds_per_image": spread([seconds[name]])}
        rows.append(replace(row, figures=row_figures))
        few = list(pictures.items())[:MAX_PAGE_SEEDS]
        drawn_columns += [_page_column(name, label, figures, images, chosen) for label, images in few]
    rows += [_baseline_row(name, figures(images)) for name, images in baselines.items()]

    shown = [beside[GREY], *drawn_columns, beside[MEAN_COLOUR], beside[TRUTH]]
    report = {
        "options": asdict(options),
        "overrides": overrides,
        "num_photos": len(photos),
        "mean_colour_from": chroma_source,
        "device": str(device),
        "num_threads": torch.get_num_threads(),
        "rows": {row.name: _reported(row) for row in rows},
    }
    title = _title(options, photos, seeds, device, chroma_source)
    write_text(folder / "comparison.json", json.dumps(report, indent=2) + "\n")
    write_text(folder / "comparison.md", markdown(rows, title))
    write_text(folder / "comparison.html", page_text(title, rows, shown, [photos.names[i] for i in chosen]))
    _show(rows, title)
    _say(f"written to {folder}")
    return folder / "comparison.html"


def _baseline_row(name: str, values: Mapping[str, float]) -> Row:
    return Row(name, {key: spread([value]) for key, value in values.items()})


def _page_column(name: str, label: str, figures: Figures, images: Tensor, chosen: list[int]) -> PhotoColumn:
    errors = figures.delta_e(images, chosen).tolist()
    return PhotoColumn(name, label, images[chosen], errors)


def _reported(row: Row) -> dict[str, Any]:
    return {
        "runs": list(row.runs),
        "depends_on_seed": row.depends_on_seed,
        "figures": {key: value._asdict() for key, value in row.figures.items()},
        "sampling_std": dict(row.sampling_std),
        "draws": list(row.draws),
    }


def _title(
    options: CompareOptions, photos: Photos, seeds: list[int], device: torch.device, chroma_source: str
) -> str:
    prompts = "captions as prompts" if options.captions == "true" else "no prompts"
    return (
        f"{len(photos)} photos of the {options.split} split at {photos.image.shape[-1]} pixels, {prompts}, sampling seeds "
        f"{', '.join(map(str, seeds))}, on {device.type}; mean colour of the {chroma_source} split."
    )


def _show(rows: Sequence[Row], title: str) -> None:
    used = used_columns(rows)
    lines = [[row.name, *cells(row, used)] for row in rows]
    print_table(["", *[column.title for column in used]], lines, title)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Parses the options and compares."""
    quiet_libraries()
    compare(*parse(CompareOptions, sys.argv[1:], USAGE))


if __name__ == "__main__":
    run_door(main)
