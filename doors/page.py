"""One HTML file that holds tables, curves, pictures and style, without scripts or links: it can be mailed."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from PIL import Image
from torch import Tensor

# Small pictures are enlarged by a whole factor to about this width and stored exactly, large ones as JPEG.
_SHOWN_PX, _EXACT_PX = 160, 320
_WIDTH, _HEIGHT, _MARGIN = 360, 220, 64
_COLORS = ("#2a6fbb", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be185d", "#525252")
STYLE = """
:root { color-scheme: light dark; --line: 1px solid color-mix(in srgb, CanvasText 20%, Canvas);
        --head: color-mix(in srgb, CanvasText 6%, Canvas); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p { max-width: 85ch; white-space: pre-line; }
.scroll { overflow: auto; max-width: 100%; width: fit-content; border: var(--line); }
.scroll:focus-visible { outline: 3px solid Highlight; }
.photos { max-height: 92vh; }
table { border-collapse: separate; border-spacing: 0; }
th, td { padding: 0.3rem 0.5rem; border-bottom: var(--line); text-align: right; vertical-align: top;
         font-variant-numeric: tabular-nums; }
.figures td { white-space: nowrap; }
thead th { background: var(--head); font-weight: 600; vertical-align: bottom; }
tbody th, thead th:first-child { text-align: left; background: var(--head); min-width: 6rem; position: sticky; left: 0; }
.photos th, .photos td { text-align: center; position: static; }
.photos thead th { position: sticky; top: 0; }
img { image-rendering: pixelated; display: block; margin: auto; max-width: 480px; height: auto; }
.note { font-size: 0.8rem; font-weight: 400; opacity: 0.75; display: block; max-width: 12rem; margin-left: auto; }
svg { max-width: 100%; } svg text { fill: currentColor; font-size: 11px; } svg .axis { stroke: currentColor; }
"""


class Table(NamedTuple):
    """Texts of a table: meanings by the titles of its columns after the first, and cells by the titles of its rows."""

    columns: Mapping[str, str]
    rows: Mapping[str, Sequence[str]]


class Photos(NamedTuple):
    """Pictures uint8 (3, H, W) under a title, each with a note such as its error."""

    title: str
    pictures: Sequence[Tensor]
    notes: Sequence[str] = ()


class Line(NamedTuple):
    """A line of a curve; `spreads` (low, high) are drawn as bars."""

    name: str
    values: Sequence[float]
    means: Sequence[float]
    spreads: Sequence[tuple[float, float] | None] = ()


def page(title: str, sections: Mapping[str, str]) -> str:
    """The page's HTML from sections of HTML by their headings; the section "" has none."""
    parts = [f"<h2>{escape(head)}</h2>\n{body}" if head else body for head, body in sections.items()]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{chr(10).join(parts)}
</main>
</body>
</html>
"""


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table_html(table: Table) -> str:
    """A table whose first column stays in sight."""
    heads = ["<th></th>", *(_head(title, meaning) for title, meaning in table.columns.items())]
    rows = [
        [f'<th scope="row">{escape(name)}</th>', *(f"<td>{escape(cell)}</td>" for cell in cells)]
        for name, cells in table.rows.items()
    ]
    return _scrolled("figures", heads, rows)


def photos_html(columns: Sequence[Photos], names: Sequence[str]) -> str:
    """Pictures side by side, a row for each image."""
    rows = [[_photo(column, number, name) for column in columns] for number, name in enumerate(names)]
    return _scrolled("photos", [_head(column.title) for column in columns], rows)


def _head(title: str, note: str = "") -> str:
    return f'<th scope="col">{escape(title)}{_note(note)}</th>'


def _note(text: str) -> str:
    return f'<span class="note">{escape(text)}</span>' if text else ""


def _photo(column: Photos, number: int, name: str) -> str:
    picture = column.pictures[number]
    height, width = picture.shape[-2:]
    scale = max(1, round(_SHOWN_PX / width))
    note = _note(column.notes[number]) if column.notes else ""
    return (
        f'<td><img src="{picture_data(picture)}" alt="{escape(f"{name}, {column.title}")}" title="{escape(name)}" '
        f'width="{width * scale}" height="{height * scale}">{note}</td>'
    )


def _scrolled(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of ready cells that scrolls within the page, also by keys."""
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<div class="scroll {name}" tabindex="0" role="region" aria-label="{name}">\n<table>\n'
        f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def picture_data(picture: Tensor) -> str:
    """A data URI of a picture uint8 (3, H, W): PNG of a small one, JPEG of a large one."""
    file, image = io.BytesIO(), Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    kind = "png" if max(image.size) <= _EXACT_PX else "jpeg"
    image.save(file, kind, optimize=True, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def curve_svg(title: str, lines: Sequence[Line]) -> str:
    """A drawing of lines over one option; values stand at equal distances where they differ by factors."""
    values = sorted({v for line in lines for v in line.values})
    ends = [h for line in lines for spread in line.spreads if spread for h in spread]
    heights = [h for line in lines for h in line.means] + ends
    low, high = min(heights), max(heights)
    left, right, top, bottom = _MARGIN, _WIDTH - _MARGIN, _MARGIN, _HEIGHT - _MARGIN

    def place_x(value: float) -> float:
        return left + values.index(value) * (right - left) / max(1, len(values) - 1)

    def place_y(height: float) -> float:
        return bottom - (height - low) / (high - low or 1.0) * (bottom - top)

    marks = [
        f'<text x="{left}" y="18">{escape(title)}</text>',
        f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{right}"/>',
    ]
    for h in {low, high}:
        marks.append(f'<text x="{left - 5}" y="{place_y(h) + 4:.1f}" text-anchor="end">{h:.4g}</text>')
    for v in values:
        marks.append(f'<text x="{place_x(v):.1f}" y="{bottom + 16}" text-anchor="middle">{v:g}</text>')
    for number, line in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        points = [f"{place_x(v):.1f},{place_y(h):.1f}" for v, h in zip(line.values, line.means, strict=True)]
        marks.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{" ".join(points)}"/>')
        for v, spread in zip(line.values, line.spreads, strict=False):
            if spread:
                bar = f"M{place_x(v):.1f} {place_y(spread[1]):.1f}V{place_y(spread[0]):.1f}"
                marks.append(f'<path stroke="{color}" d="{bar}"/>')
        name = f'<text x="{left}" y="{_HEIGHT + 13 * number}" style="fill:{color}">{escape(line.name)}</text>'
        marks.append(name)
    tall, drawn = _HEIGHT + 13 * len(lines), "\n".join(marks)
    return f'<svg width="{_WIDTH}" height="{tall}" viewBox="0 0 {_WIDTH} {tall}" role="img">\n{drawn}\n</svg>'
