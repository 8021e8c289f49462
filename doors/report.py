"""What was measured, as printed tables, metrics.json, a sheet of pictures and a page to judge by eye."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from callbacks.samples import picture_grid
from datamodules.atomic_files import write_text
from doors.costs import TITLES, Costs
from doors.measure import Measured, Plan, Row, differences
from doors.page import Line, Photos, Table, curve_svg, page, paragraph, photos_html, table_html
from tasks.base import Column, Task

log = logging.getLogger(__name__)

Figures = dict[str, dict[str, dict[str, Any]]]  # row -> metric -> mean, std, count, interval ...
_WIDEST = 1000  # characters of a line; a table takes as many as it needs
HOW_TO_READ = (
    "All rows see the same images. A plus-minus is the standard deviation over images; of a method with several trainings it "
    "is that of their means. Seconds are of one image at a time, the methods in turns."
)


def write_report(
    folder: Path, title: str, intro: str, task: Task, found: Measured, facts: Mapping[str, Any]
) -> None:
    """Prints the tables and writes metrics.json, samples.png and index.html into the folder."""
    figures: Figures = {row.name: row.figures() for row in found.rows}
    measured = dict.fromkeys(key for values in figures.values() for key in values)
    skipped = {
        key: why
        for row in found.rows
        for scores in row.scores
        for key, why in scores.skipped.items()
        if key not in measured  # a baseline may lack what the methods have
    }
    columns = [task.column(key) for key in measured]
    report = {
        **facts,
        "results": figures,
        "differences": differences(found.rows),
        "costs": found.costs,
        "skipped": skipped,
    }
    write_text(folder / "metrics.json", json.dumps(report, indent=2) + "\n")
    photos = _photos(found, columns)
    if found.names:
        picture_grid({p.title: [x / 255 for x in p.pictures] for p in photos}).save(folder / "samples.png")
    protocol = ", ".join(f"{k}={v}" for k, v in facts["protocol"].items() if v is not None)
    heading = f"{title}, {facts['split']}, {facts['num_images']} images"
    tables = {"Figures": _figures_table(figures, columns), "Costs": _costs_table(found.costs)}
    sections = {
        "": paragraph("\n".join(filter(None, (intro, HOW_TO_READ, f"Protocol: {protocol}.")))),
        **{name: table_html(table) for name, table in tables.items()},
        "Curves": "\n".join(_curves(found.rows, figures, columns)),
        "Pictures": photos_html(photos, found.names),
    }
    write_text(folder / "index.html", page(heading, {head: body for head, body in sections.items() if body}))
    _print({heading: tables["Figures"], "costs": tables["Costs"]}, skipped)
    log.info("written to %s", folder)


def _figures_table(figures: Figures, columns: Sequence[Column]) -> Table:
    rows = {
        name: [_figure(values.get(column.key), column.digits) for column in columns]
        for name, values in figures.items()
    }
    return Table({column.title: _meaning(column) for column in columns}, rows)


def _figure(values: Mapping[str, Any] | None, digits: int) -> str:
    if values is None:
        return "-"
    spread = values.get("spread", values["std"])
    return f"{values['mean']:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _meaning(column: Column) -> str:
    better = f"{column.better} is better" if column.better else ""
    return "; ".join(filter(None, (column.meaning, better)))


def _costs_table(costs: Mapping[str, Costs]) -> Table:
    used = [key for key in TITLES if any(cost.get(key) is not None for cost in costs.values())]
    rows = {name: [_cost(cost.get(key)) for key in used] for name, cost in costs.items()}
    return Table({TITLES[key]: "" for key in used}, rows)


def _cost(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _photos(found: Measured, columns: Sequence[Column]) -> list[Photos]:
    """Baselines, methods and the truth; under each picture the first metric that has a value for each image."""
    shown = []
    for row in sorted(found.rows, key=lambda row: row.plan is not None):
        values = {column.title: row.per_image(column.key) for column in columns}
        title, own = next(((t, v) for t, v in values.items() if v is not None), ("", None))
        notes = [] if own is None else [f"{title} {own[place]:.2f}" for place in found.positions]
        shown.append(Photos(row.name, row.pictures, notes))
    return [*shown, Photos("truth", found.truth)] if found.truth else shown


def _curves(rows: Sequence[Row], figures: Figures, columns: Sequence[Column]) -> list[str]:
    """A drawing for each metric, with a line for each method whose option was varied."""
    points: dict[str, list[tuple[Plan, dict[str, Any]]]] = {}
    for row in rows:
        if row.is_first and row.plan and row.plan.curve:
            points.setdefault(row.plan.curve, []).append((row.plan, figures[row.name]))
    drawn = []
    for key, title in ((column.key, column.title) for column in columns):
        lines = []
        for name, found in points.items():
            have = [(plan.value, values[key]) for plan, values in found if key in values]
            means, intervals = [v["mean"] for _, v in have], [v["interval"] for _, v in have]
            lines += [Line(name, [x for x, _ in have], means, intervals)] if have else []
        drawn += [curve_svg(title, lines)] if lines else []
    return drawn


def _print(tables: Mapping[str, Table], skipped: Mapping[str, str]) -> None:
    """Titles break between words, so that the tables stay narrow; cells never do, however narrow the screen."""
    console = Console(width=_WIDEST)
    for title, table in tables.items():
        shown = RichTable(title=title, title_justify="left", box=box.MARKDOWN)
        shown.add_column("")
        for place, head in enumerate(table.columns):
            texts = [*head.split(), *(cells[place] for cells in table.rows.values())]
            shown.add_column(head, justify="right", width=max(map(len, texts)))
        for name, cells in table.rows.items():
            shown.add_row(name, *cells)
        console.print(shown)
    for name, reason in skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False, soft_wrap=True)
