"""What was measured, as a printed table, metrics.json, a sheet of pictures and a page to judge by eye."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from callbacks.samples import picture_grid
from doors.costs import TITLES, Costs
from doors.measure import Measured, Row, differences
from doors.page import Line, Photos, Table, curve_svg, page, paragraph, photos_html, table_html
from runs.folder import write_text
from tasks.base import Column, Task

log = logging.getLogger(__name__)

Figures = dict[str, dict[str, dict[str, Any]]]
HOW_TO_READ = (
    "All rows see the same images. A plus-minus is the standard deviation over images; of a method with several trainings it "
    "is that of their means. Seconds are of one image at a time, the methods in turns."
)


@dataclass(frozen=True)
class Report:
    """The folder with what was written, and the table for other pages."""

    folder: Path
    table: Table
    figures: Figures  # row -> metric -> mean, std, count, interval ...


def write_report(
    folder: Path, title: str, intro: str, task: Task, found: Measured, facts: Mapping[str, Any]
) -> Report:
    """Prints the table and writes metrics.json, samples.png and index.html into the folder."""
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
    table, spent = _table(figures, columns), _costs(found.costs)
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
    sections = {
        "": paragraph("\n".join(filter(None, (intro, HOW_TO_READ, f"Protocol: {protocol}.")))),
        "Figures": table_html(table),
        "Costs": table_html(spent),
        "Curves": _curves(found.rows, figures, columns),
        "Pictures": photos_html(photos, found.names),
    }
    write_text(folder / "index.html", page(heading, {head: body for head, body in sections.items() if body}))
    _print({heading: table, "costs": spent}, skipped)
    log.info("written to %s", folder)
    return Report(folder, table, figures)


def plain(options: Any) -> dict[str, Any]:
    """The options that a user can set, for a report."""
    return {f.name: getattr(options, f.name) for f in fields(options) if "help" in f.metadata}


def _table(figures: Figures, columns: list[Column]) -> Table:
    rows = {
        name: [_figure(values.get(column.key), column.digits) for column in columns]
        for name, values in figures.items()
    }
    return Table({c.title: _meaning(c) for c in columns}, rows)


def _costs(costs: Mapping[str, Costs]) -> Table:
    """What each method's own row costs; columns that no method has are left out."""
    used = [key for key in TITLES if any(cost.get(key) is not None for cost in costs.values())]
    rows = {
        name: [
            "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
            for value in (cost.get(key) for key in used)
        ]
        for name, cost in costs.items()
    }
    return Table({TITLES[key]: "" for key in used}, rows)


def _figure(values: Mapping[str, Any] | None, digits: int) -> str:
    if values is None:
        return "-"
    spread = values.get("spread", values["std"])
    return f"{values['mean']:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _meaning(column: Column) -> str:
    better = f"{column.better} is better" if column.better else ""
    return "; ".join(filter(None, (column.meaning, better)))


def _photos(found: Measured, columns: list[Column]) -> list[Photos]:
    """Baselines, methods and the truth; under each picture the first metric that has a value for each image."""
    shown = []
    for row in sorted(found.rows, key=lambda row: row.method is not None):
        values = {column.title: row.per_image(column.key) for column in columns}
        title, own = next(((t, v) for t, v in values.items() if v is not None), ("", None))
        notes = [] if own is None else [f"{title} {own[place]:.2f}" for place in found.positions]
        shown.append(Photos(row.name, row.pictures, notes))
    return [*shown, Photos("truth", found.truth)] if found.truth else shown


def _curves(rows: list[Row], figures: Figures, columns: list[Column]) -> str:
    points = [row for row in rows if row.method is not None and row.method.curve]
    drawn = []
    for column in columns if points else []:
        lines = []
        for name, group in groupby(points, key=lambda row: row.method.curve if row.method else ""):
            values = [
                (row.method.value, figures[row.name][column.key])
                for row in group
                if row.method and column.key in figures[row.name]
            ]
            if values:
                spreads = [v["interval"] for _, v in values]
                lines.append(Line(name, [x for x, _ in values], [v["mean"] for _, v in values], spreads))
        drawn += [curve_svg(column.title, lines)] if lines else []
    return "\n".join(drawn)


def _print(tables: Mapping[str, Table], skipped: Mapping[str, str]) -> None:
    console = Console(width=110)
    for title, table in tables.items():
        shown = RichTable(title=title, box=box.MARKDOWN)
        shown.add_column("", no_wrap=True)
        for column in table.columns:
            shown.add_column(column, justify="right")
        for name, cells in table.rows.items():
            shown.add_row(name, *cells)
        # No figure is broken into two lines, however narrow the terminal.
        console.width = max(110, 17 * len(table.columns) + max(map(len, table.rows)))
        console.print(shown)
    for name, reason in skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False)
