"""The page of a comparison: one HTML file that holds table, photos and style, without scripts or links."""

import base64
import html
import io
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.colorizer_table import SPREAD_SENTENCE, Row, cells, used_columns

# Small photos are enlarged by a whole factor to about this width.
_SHOWN_PX = 128
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1c1c; --faint: #5a5a5a; --line: #d0d0d0; --head: #f2f2f2; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181b; --text: #e6e6e6; --faint: #a5a9ae; --line: #3c4046; --head: #23262b; }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; padding: 0 1rem; background: var(--back);
       color: var(--text); }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p { max-width: 75ch; }
.scroll { overflow: auto; max-width: 100%; border: 1px solid var(--line); }
.scroll:focus-visible { outline: 3px solid Highlight; }
.photos { max-height: 92vh; width: fit-content; }
table { border-collapse: separate; border-spacing: 0; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); }
thead th { background: var(--head); font-weight: 600; }
.figures th, .figures td { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.figures thead th { white-space: normal; vertical-align: bottom; }
.figures tbody th, .figures thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--head); }
.figures tbody th { white-space: normal; min-width: 6rem; max-width: 12rem; }
.figures .baseline td, .figures .baseline th { color: var(--faint); }
.photos thead { position: sticky; top: 0; z-index: 1; }
.photos thead th { vertical-align: bottom; text-align: center; }
.photos td, .photos tbody th { text-align: center; vertical-align: top; font-weight: 400; }
.photos .first { border-left: 1px solid var(--line); }
img { image-rendering: pixelated; display: block; margin: auto; }
.error { font-size: 0.85rem; color: var(--faint); font-variant-numeric: tabular-nums; }
dl { columns: 2 28rem; column-gap: 2.5rem; font-size: 0.9rem; }
dl div { break-inside: avoid; padding-bottom: 0.4rem; } dt { font-weight: 600; } dd { margin: 0; }
"""


class PhotoColumn(NamedTuple):
    """Pictures uint8 (N, 3, H, W) under one title with their CIEDE2000; columns of one title stand together."""

    title: str
    label: str
    images: Tensor
    errors: Sequence[float]


def page_text(title: str, rows: Sequence[Row], columns: Sequence[PhotoColumn], names: Sequence[str]) -> str:
    """The page's HTML.

    Args:
        title: one sentence on what was compared.
        rows: of the table.
        columns: of the photos, in order.
        names: of the photos.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Colorizers compared</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Colorizers compared</h1>
<p>{html.escape(title)} Every method gets the lightness of a photo and keeps it. {SPREAD_SENTENCE}</p>
<h2 id="figures">Figures</h2>
<div class="scroll" tabindex="0" role="region" aria-labelledby="figures">
{_figures(rows)}
</div>
{_meanings(rows)}
<h2 id="photos">Photos</h2>
<p>{len(names)} photos, evenly spread over those measured. Where the sampling seed changes a result, several are shown. The
number under a picture is its CIEDE2000 to the truth; a method with several runs shows its first.</p>
<div class="scroll photos" tabindex="0" role="region" aria-labelledby="photos">
{_photos(columns, names)}
</div>
</main>
</body>
</html>
"""


def _figures(rows: Sequence[Row]) -> str:
    columns = used_columns(rows)
    heads = "".join(f'<th scope="col">{html.escape(column.title)}</th>' for column in columns)
    lines = []
    for row in rows:
        kind = "" if row.is_method else ' class="baseline"'
        texts = "".join(f"<td>{text}</td>" for text in cells(row, columns))
        lines.append(f'<tr{kind}><th scope="row">{html.escape(row.name)}</th>{texts}</tr>')
    head = f'<thead><tr><th scope="col">method</th>{heads}</tr></thead>'
    return f'<table class="figures">\n{head}\n<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table>'


def _meanings(rows: Sequence[Row]) -> str:
    columns = used_columns(rows)
    entries = [
        f"<div><dt>{html.escape(c.title)}</dt><dd>{html.escape(c.meaning)}</dd></div>" for c in columns
    ]
    return f"<h2>What the columns say</h2>\n<dl>\n{chr(10).join(entries)}\n</dl>"


def _photos(columns: Sequence[PhotoColumn], names: Sequence[str]) -> str:
    groups = [(title, list(members)) for title, members in groupby(columns, key=lambda c: c.title)]
    firsts = {id(members[0]) for _, members in groups}
    lines = []
    for number, name in enumerate(names):
        texts = [_picture(column, number, name, first=id(column) in firsts) for column in columns]
        lines.append(f"<tr>{''.join(texts)}</tr>")
    body = "\n".join(lines)
    return f"<table>\n<thead>{_photo_heads(groups)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _photo_heads(groups: Sequence[tuple[str, list[PhotoColumn]]]) -> str:
    """Names of the methods, and below those with several columns what tells these apart."""
    titles, labels = [], []
    two_lines = ' rowspan="2"' if any(len(members) > 1 for _, members in groups) else ""
    for title, members in groups:
        name = html.escape(title)
        if len(members) == 1:
            titles.append(f'<th class="first" scope="col"{two_lines}>{name}</th>')
            continue
        titles.append(f'<th class="first" scope="colgroup" colspan="{len(members)}">{name}</th>')
        for place, column in enumerate(members):
            first = ' class="first"' if place == 0 else ""
            labels.append(f'<th{first} scope="col">{html.escape(column.label)}</th>')
    return f"<tr>{''.join(titles)}</tr>" + (f"<tr>{''.join(labels)}</tr>" if labels else "")


def _picture(column: PhotoColumn, number: int, name: str, *, first: bool) -> str:
    image = column.images[number]
    height, width = image.shape[-2:]
    scale = max(1, round(_SHOWN_PX / width))
    said = html.escape(", ".join(filter(None, (name, column.title, column.label))))
    kind = ' class="first"' if first else ""
    return (
        f'<td{kind}><img src="{png_data(image)}" alt="{said}" title="{html.escape(name)}" width="{width * scale}" '
        f'height="{height * scale}"><span class="error">{column.errors[number]:.1f}</span></td>'
    )


def png_data(image: Tensor) -> str:
    """A data URI of a picture uint8 (3, H, W)."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
