"""One HTML file that holds tables, curves, pictures and style, without scripts or links: it can be mailed."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image
from torch import Tensor

# Small pictures are enlarged by a whole factor to about this width and stored exactly, large ones as JPEG.
_SHOWN_PX, _EXACT_PX = 160, 320
_WIDTH, _HEIGHT, _MARGIN = 360, 220, 64
_COLORS = ("#2a6fbb", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be185d", "#525252")
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1c1c; --faint: #5a5a5a; --line: #d0d0d0; --head: #f2f2f2; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181b; --text: #e6e6e6; --faint: #a5a9ae; --line: #3c4046; --head: #23262b; }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; padding: 0 1rem; background: var(--back);
       color: var(--text); }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p, pre { max-width: 85ch; white-space: pre-line; }
pre { background: var(--head); padding: 0.6rem; }
.scroll { overflow: auto; max-width: 100%; width: fit-content; border: 1px solid var(--line); }
.scroll:focus-visible { outline: 3px solid Highlight; }
.photos { max-height: 92vh; }
table { border-collapse: separate; border-spacing: 0; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
         font-variant-numeric: tabular-nums; }
thead th { background: var(--head); font-weight: 600; vertical-align: bottom; }
tbody th, thead th:first-child { text-align: left; background: var(--head); min-width: 6rem; position: sticky; left: 0; }
.photos th, .photos td { text-align: center; position: static; }
.photos thead th { position: sticky; top: 0; }
img { image-rendering: pixelated; display: block; margin: auto; max-width: 480px; height: auto; }
.note { font-size: 0.8rem; font-weight: 400; color: var(--faint); display: block; max-width: 12rem; margin-left: auto; }
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
    parts = [f"<h2>{html.escape(head)}</h2>\n{body}" if head else body for head, body in sections.items()]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
{chr(10).join(parts)}
</main>
</body>
</html>
"""


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table_html(table: Table) -> str:
    """A table whose first column stays in sight."""
    heads = "".join(
        f'<th scope="col">{html.escape(title)}<span class="note">{html.escape(text)}</span></th>'
        for title, text in table.columns.items()
    )
    lines = [
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{html.escape(c)}</td>" for c in cells)}</tr>'
        for name, cells in table.rows.items()
    ]
    return _scrolled(
        f"<thead><tr><th></th>{heads}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody>", "figures"
    )


def photos_html(columns: Sequence[Photos], names: Sequence[str]) -> str:
    """Pictures side by side, a row for each image."""
    heads = "".join(f'<th scope="col">{html.escape(column.title)}</th>' for column in columns)
    lines = []
    for number, name in enumerate(names):
        cells = "".join(_cell(column, number, name) for column in columns)
        lines.append(f"<tr>{cells}</tr>")
    return _scrolled(f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody>", "photos")


def curve_svg(title: str, lines: Sequence[Line]) -> str:
    """A drawing of lines over one option; values stand at equal distances where they differ by factors."""
    values = sorted({v for line in lines for v in line.values})
    heights = [h for line in lines for h in line.means] + [
        h for line in lines for s in line.spreads if s for h in s
    ]
    low, high = min(heights), max(heights)
    span = high - low or 1.0
    step = (_WIDTH - 2 * _MARGIN) / max(1, len(values) - 1)

    def place(value: float, height: float) -> tuple[float, float]:
        return (
            _MARGIN + values.index(value) * step,
            _HEIGHT - _MARGIN - (height - low) / span * (_HEIGHT - 2 * _MARGIN),
        )

    marks = [
        f'<text x="{_MARGIN}" y="18">{html.escape(title)}</text>',
        f'<path class="axis" fill="none" d="M{_MARGIN} {_MARGIN}V{_HEIGHT - _MARGIN}H{_WIDTH - _MARGIN}"/>',
        *(f'<text x="{_MARGIN - 5}" y="{place(values[0], h)[1] + 4:.1f}" text-anchor="end">{h:.4g}</text>' for h in {low, high}),
        *(f'<text x="{place(v, low)[0]:.1f}" y="{_HEIGHT - _MARGIN + 16}" text-anchor="middle">{v:g}</text>' for v in values),
    ]  # fmt: skip
    for number, line in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, line.values, line.means))
        marks.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{points}"/>')
        for value, spread in zip(line.values, line.spreads, strict=False):
            if spread:
                (x, top), (_, bottom) = place(value, spread[1]), place(value, spread[0])
                marks.append(f'<path stroke="{color}" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
        label = f'<text x="{_MARGIN}" y="{_HEIGHT + 13 * number}" style="fill:{color}">{html.escape(line.name)}</text>'
        marks.append(label)
    tall = _HEIGHT + 13 * len(lines)
    drawn = "\n".join(marks)
    return f'<svg width="{_WIDTH}" height="{tall}" viewBox="0 0 {_WIDTH} {tall}" role="img">\n{drawn}\n</svg>'


def picture_data(picture: Tensor) -> str:
    """A data URI of a picture uint8 (3, H, W): PNG of a small one, JPEG of a large one."""
    file, image = io.BytesIO(), Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    exact = max(image.size) <= _EXACT_PX
    if exact:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=90)
    return (
        f"data:image/{'png' if exact else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    )


def _scrolled(body: str, name: str) -> str:
    return f'<div class="scroll {name}" tabindex="0" role="region" aria-label="{name}">\n<table>\n{body}\n</table>\n</div>'


def _cell(column: Photos, number: int, name: str) -> str:
    picture = column.pictures[number]
    height, width = picture.shape[-2:]
    scale = max(1, round(_SHOWN_PX / width))
    note = f'<span class="note">{html.escape(column.notes[number])}</span>' if column.notes else ""
    said = html.escape(f"{name}, {column.title}")
    return (
        f'<td><img src="{picture_data(picture)}" alt="{said}" title="{html.escape(name)}" width="{width * scale}" '
        f'height="{height * scale}">{note}</td>'
    )
