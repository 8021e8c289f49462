"""How a colorizer's figures change with one setting: steps, vividness, hints; and what a ranker of vividness gains.

    python -m benchmarks.colorizer_curves run=RUN what=steps output=DIR [values=1,2,5,10,20,50] [seeds=0,1,2] \
        [datamodule=photos datamodule.root=DIR split=val limit=N]
    python -m benchmarks.colorizer_curves run=RUN what=ranker ranker=RUN output=DIR ...

| what | values are | each photo is drawn |
|---|---|---|
| steps | network evaluations, without guidance's second branch | with so many steps |
| chroma | chroma scales | with its ab multiplied by it |
| hints | numbers of patches | knowing the true colours of so many random patches (needs module.hint_prob above 0) |
| ranker | chroma scales that the ranker picks from; those of chroma=auto if not given | once, and scaled |
"""

import csv
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.colorizer_costs import evaluations_per_image, seconds_per_image
from benchmarks.colorizer_figures import Figures, Spread, spread
from benchmarks.colorizer_hints import check_hints, hinted_draw
from benchmarks.colorizer_photos import (
    STAGES,
    Draw,
    Photos,
    draw_all,
    eight_bit,
    load_colorizer,
    photos_datamodule,
    plain_draw,
    read_photos,
    seeds_that_matter,
    whole_numbers,
)
from benchmarks.colorizer_table import print_table, shown
from benchmarks.colorizer_vividness import candidates, ranker_rows, scores_of
from lightning_modules.colorizer import CHROMA_SCALES, Colorizer
from runs.cli import run_door
from runs.folder import write_text
from runs.logs import quiet_libraries
from runs.options import option, parse
from runs.prediction import pick_device
from runs.vividness import AUTO, load_ranker

USAGE = (
    "python -m benchmarks.colorizer_curves run=RUN what=steps|chroma|hints|ranker output=DIR [values=1,2,5]"
)
VALUES = {
    "steps": "1,2,5,10,20,50",
    "chroma": "0,0.25,0.5,0.75,1,1.25,1.5",
    "hints": "0,1,2,5,10,20",
    "ranker": ",".join(f"{scale:g}" for scale in CHROMA_SCALES),
}
TUNE_SPLIT, TUNE_LIMIT = "train", 192


@dataclass(frozen=True)
class CurveOptions:
    """Options of a curve."""

    run: str = option("run folder, checkpoint file, or a name in pretrained/")
    what: str = option("steps | chroma | hints | ranker")
    output: str = option("folder for WHAT.json and WHAT.csv")
    values: str | None = option("comma-separated; a usual choice if not given", None)
    ranker: str | None = option(
        "for what=ranker: a run of vividness_ranker, or clip:FOLDER_OR_HUB_ID; vividness_ranker if not given",
        None,
    )
    tune_split: str | None = option(
        "for what=ranker: the best fixed scale of this split is what the ranker is compared with; train if not given",
        None,
    )
    tune_limit: int | None = option(
        "for what=ranker: so many photos of tune_split, evenly spread; 192 if not given", None
    )
    split: str = option("train, val or test", "val")
    seeds: str = option("sampling seeds, comma-separated", "0")
    limit: int | None = option("so many photos, evenly spread over the split; all if not given", None)
    colorfulness: str = option("absolute (as in recent papers' code) | hasler (the original)", "absolute")
    rounds: int = option("turns of the timing, of which the median is taken", 7)
    device: str = option("auto, cpu, cuda ...", "auto")


def measure(options: CurveOptions, overrides: list[str]) -> dict[str, Any]:
    """Draws, measures, writes both files, prints the table, and returns the report.

    Raises:
        FileNotFoundError, ValueError: no such run or data, or an option that makes no sense.
    """
    values, seeds = parse_values(options), whole_numbers("seeds", options.seeds)
    tune_split = parse_tuning(options)
    if options.rounds < 1:
        raise ValueError(f"rounds={options.rounds} times nothing; give at least 1")
    device = pick_device(options.device)
    ranker = load_ranker(AUTO, options.ranker, device) if options.what == "ranker" else None
    run = load_colorizer(options.run, device)
    module: Any = run.module
    if options.what == "hints":
        check_hints(module, options.run)
    sizes = {options.run: int(run.config["datamodule"]["size_px"])}
    datamodule = photos_datamodule(run.config, overrides, sizes)
    photos = read_photos(datamodule, options.split, limit=options.limit)
    figures = Figures(eight_bit(photos.image), variant=options.colorfulness)  # type: ignore[arg-type]
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    if ranker is None:
        draws = {f"{value:g}": draw_at(module, options.what, value) for value in values}
        rows = costs(
            module, draws, photos, options.rounds
        )  # first, as it finds values that the run cannot take
        for name, qualities in quality(module, options.what, draws, photos, seeds, figures).items():
            rows[name] = qualities | rows[name]
    else:
        tuning = read_photos(datamodule, tune_split, limit=options.tune_limit or TUNE_LIMIT)
        if photos.overlap(tuning):
            raise ValueError(
                f"split={options.split} and tune_split={tune_split} share photos, so that the fixed scale would know them; "
                "give another tune_split or split"
            )
        rows = ranker_rows(module, scores_of(ranker), photos, seeds, values, figures, tuning)
    report = {
        "options": asdict(options),
        "overrides": overrides,
        "num_photos": len(photos),
        "true_colorfulness": figures.true_colorfulness.mean().item(),
        "device": str(device),
        "rows": {name: {k: v._asdict() for k, v in row.items()} for name, row in rows.items()},
    }
    write_text(folder / f"{options.what}.json", json.dumps(report, indent=2) + "\n")
    write_csv(folder / f"{options.what}.csv", options.what, rows)
    show(rows, f"{options.run}, {options.what}, {len(photos)} photos of the {options.split} split")
    return report


def parse_values(options: CurveOptions) -> list[float]:
    """Raises ValueError for an unknown curve, or values that it cannot take."""
    if options.what not in VALUES:
        raise ValueError(f"what={options.what} is not one of {', '.join(VALUES)}")
    for key in ("ranker", "tune_split", "tune_limit"):
        given = getattr(options, key)
        if given is not None and options.what != "ranker":
            raise ValueError(
                f"{key}={given} has no effect on what={options.what}; give what=ranker, or leave {key} out"
            )
    text = VALUES[options.what] if options.values is None else options.values
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(
            f"values={text} is not a list of numbers, such as values={VALUES[options.what]}"
        ) from None
    least, whole = (1 if options.what == "steps" else 0), options.what in ("steps", "hints")
    if not all(least <= v < float("inf") and (not whole or v == int(v)) for v in values):
        kind = "whole numbers" if whole else "numbers"
        raise ValueError(f"values={text}: what={options.what} takes {kind} of at least {least}")
    return list(dict.fromkeys(values))


def parse_tuning(options: CurveOptions) -> str:
    """The split that the fixed scale is tuned on.

    Raises:
        ValueError: an unknown split, the measured one, or no photo of it.
    """
    split = TUNE_SPLIT if options.tune_split is None else options.tune_split
    if split not in STAGES:
        raise ValueError(f"tune_split={split} is not train, val or test")
    if options.what == "ranker" and split == options.split:
        raise ValueError(
            f"split={options.split} is measured and tuned on, so that the fixed scale would know the photos; give another "
            "tune_split or split"
        )
    if options.tune_limit is not None and options.tune_limit < 1:
        raise ValueError(f"tune_limit={options.tune_limit} leaves no photo to tune on; give at least 1")
    return split


def draw_at(module: Any, what: str, value: float) -> Draw:
    """How photos are drawn at one value of the curve."""
    if what == "steps":
        return plain_draw(module, num_steps=int(value))
    if what == "chroma":
        return plain_draw(module, chroma_scale=value)
    return hinted_draw(module, int(value))


def costs(
    module: Colorizer, draws: dict[str, Draw], photos: Photos, num_rounds: int
) -> dict[str, dict[str, Spread]]:
    """Network evaluations and seconds by value."""
    one = photos.part(0, 1)
    counts = {name: evaluations_per_image(module, draw, one) for name, draw in draws.items()}
    seconds = seconds_per_image(draws, photos, num_rounds)
    return {
        name: {
            "evaluations_per_image": spread([counts[name]]),
            "seconds_per_image": spread([seconds[name]]),
        }
        for name in draws
    }


def quality(
    module: Colorizer,
    what: str,
    draws: dict[str, Draw],
    photos: Photos,
    seeds: list[int],
    figures: Figures,
) -> dict[str, dict[str, Spread]]:
    """Figures by value, with their spread over those sampling seeds that change something."""
    found: dict[str, list[dict[str, float]]] = {}
    if what == "chroma":  # the same drawn colours at every scale
        for seed in seeds_that_matter(plain_draw(module), photos, seeds):
            images = candidates(module, photos, seed, [float(name) for name in draws])
            for name, image in zip(draws, images, strict=True):
                found.setdefault(name, []).append(figures(image))
    else:
        for name, draw in draws.items():
            # The patches of hints vary with the seed even where nothing else does.
            kept = seeds if what == "hints" else seeds_that_matter(draw, photos, seeds)
            found[name] = [figures(draw_all(draw, photos, seed)) for seed in kept]
    return {
        name: {key: spread([entry[key] for entry in entries]) for key in entries[0]}
        for name, entries in found.items()
    }


def columns_of(rows: dict[str, dict[str, Spread]]) -> list[str]:
    """The figures that some row has, in order."""
    return list(dict.fromkeys(key for row in rows.values() for key in row))


def write_csv(path: Path, what: str, rows: dict[str, dict[str, Spread]]) -> None:
    """One line a row: mean and standard deviation of each figure."""
    keys = columns_of(rows)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([what, *[f"{key}{end}" for key in keys for end in ("", "_std")]])
        for name, row in rows.items():
            pairs = [(row[k].mean, row[k].std) if k in row else ("", "") for k in keys]
            writer.writerow([name, *["" if v is None else v for pair in pairs for v in pair]])


def show(rows: dict[str, dict[str, Spread]], title: str) -> None:
    """Prints the table."""
    keys = columns_of(rows)
    lines = [[name, *[shown(row.get(key), 3) for key in keys]] for name, row in rows.items()]
    print_table(["", *[key.replace("_", " ") for key in keys]], lines, title)


def main() -> None:
    """Parses the options and measures."""
    quiet_libraries()
    measure(*parse(CurveOptions, sys.argv[1:], USAGE))


if __name__ == "__main__":
    run_door(main)
