"""The demo: trains the colorizer for a few minutes, colours grey photos, writes a page: python -m runs.demo"""

import html
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from runs.cli import run_door
from runs.config import stamp
from runs.options import option, parse

USAGE = (
    "python -m runs.demo [steps=N] [output=DIR] [KEY=VALUE of the training, such as trainer.accelerator=cpu]"
)
SHIPPED = "colorize_controlnet"
NUM_STEPS = 600  # optimiser steps of the fresh run: about 3 minutes on 2 cores
BATCH_SIZE = 16
NUM_WARMUP_STEPS = 30
VIVID_STEPS = 10

# Files in skimage/data, shown whole and at their own size.
PHOTOS = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg", "motorcycle_left.png")
COLUMNS = {
    "before": "before",
    "fresh": "fresh run",
    "shipped": "shipped model",
    "vivid": "shipped model, a vivid sample",
    "truth": "truth",
}
ROWS = {"no prompt": "", "mean colour": "mean colour (baseline)", "grey": "grey (baseline)"}
METRICS = {
    "delta_e2000": "CIEDE2000 (lower is better)",
    "colorfulness_difference": "colourfulness difference (lower)",
    "psnr": "PSNR in dB (higher)",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fafafa; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; }
th, td { padding: 0.4rem; text-align: left; vertical-align: top; }
table.photos { table-layout: fixed; }
table.photos img { width: 100%; display: block; border-radius: 4px; }
table.figures { width: auto; }
table.figures th, table.figures td { border-bottom: 1px solid #ddd; padding-right: 2rem; }
table.figures td { font-variant-numeric: tabular-nums; }
pre { background: #eee; padding: 0.8rem; border-radius: 4px; white-space: pre-wrap; }
caption { text-align: left; color: #666; padding-bottom: 0.4rem; }
"""

Figures = Mapping[str, Mapping[str, float]]  # row title -> metric -> mean


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo."""

    steps: int = option("optimiser steps of the fresh run", NUM_STEPS)
    output: str = option("folder of the page; pictures of an earlier demo in it are replaced", "outputs/demo")


def demo(options: DemoOptions, overrides: Sequence[str]) -> Path:
    """Trains, predicts and evaluates, and returns the page.

    Raises:
        FileNotFoundError: the shipped model or the photos are missing.
        ChildProcessError: the training failed; it has said why.
    """
    from datamodules.decode import decode_image
    from runs.load import locate
    from runs.prediction import PredictOptions, predict

    locate(SHIPPED)  # before minutes of training, not after
    folder = Path(options.output)
    photos = {path.stem: decode_image(path, 64_000_000) for path in _photo_files()}
    save_photos(photos, folder)
    run_dir = Path("outputs") / SHIPPED / stamp()
    command = training_command(options.steps, run_dir, overrides)
    _say(f"training: {shown(command)}")
    if subprocess.run(command, check=False).returncode:
        raise ChildProcessError("the training of the demo failed; the lines above say why")
    figures: dict[str, dict[str, float]] = {}
    for column, run in (("fresh", str(run_dir)), ("shipped", SHIPPED)):
        _say(f"colouring {len(photos)} photos with the {COLUMNS[column]}")
        predict(PredictOptions(run=run, input=str(folder / "before"), output=str(folder / column)))
        figures |= measured(run, COLUMNS[column], folder / "evaluate" / column)
    runs_first = dict(sorted(figures.items(), key=lambda row: row[0] not in COLUMNS.values()))
    # More steps draw one of many plausible colourings, one step their average.
    before, vivid = str(folder / "before"), str(folder / "vivid")
    predict(PredictOptions(run=SHIPPED, input=before, output=vivid, steps=VIVID_STEPS, chroma="1"))
    page = write_page(folder, list(photos), runs_first, shown(command))
    _say(f"open {page} in a browser")
    return page


def training_command(num_steps: int, run_dir: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The command line of the fresh run: the main experiment on the built-in photos, shortened."""
    return [
        sys.executable,
        "train.py",
        f"experiment={SHIPPED}",
        "callbacks=cached",
        f"datamodule.batch_size={BATCH_SIZE}",
        f"trainer.max_steps={num_steps}",
        f"trainer.val_check_interval={num_steps}",
        f"module.num_warmup_steps={min(NUM_WARMUP_STEPS, num_steps)}",
        f"run_dir={run_dir}",
        *overrides,
    ]


def shown(command: Sequence[str]) -> str:
    """The command as a user would type it."""
    return " ".join(["python", *command[1:]])


def save_photos(photos: Mapping[str, Tensor], folder: Path) -> None:
    """Writes each photo uint8 (3, H, W) as truth/NAME.png and its neutral picture of equal L* as before/NAME.png."""
    from color.lab import grey_image, lightness

    for column in COLUMNS:
        shutil.rmtree(folder / column, ignore_errors=True)
    for column in ("before", "truth"):
        (folder / column).mkdir(parents=True)
    for name, photo in photos.items():
        grey = grey_image(lightness(photo[None].float() / 255))[0]
        pictures = {"before": (grey * 255).round().byte(), "truth": photo}
        for column, picture in pictures.items():
            rows = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
            Image.fromarray(rows).save(folder / column / f"{name}.png", compress_level=4)


def measured(run: str, title: str, folder: Path) -> dict[str, dict[str, float]]:
    """Figures of a run on the built-in validation crops, by row title and metric."""
    from runs.evaluation import EvaluateOptions, evaluate

    options = EvaluateOptions(run=run, split="val", output=str(folder))
    report = json.loads((evaluate(options, ["datamodule=builtin_photos"]) / "metrics.json").read_text())
    rows = {row: values for row, values in report["results"].items() if row in ROWS}
    return {
        ROWS[row] or title: {metric: value["mean"] for metric, value in values.items()}
        for row, values in rows.items()
    }


def write_page(folder: Path, names: Sequence[str], figures: Figures, command: str) -> Path:
    """Writes index.html beside the pictures and returns it; it needs no server and no network.

    Args:
        folder: holds COLUMN/NAME.png for every column.
        names: of the photos, in order.
        figures: see `measured`.
        command: which trained the fresh run.

    Raises:
        FileNotFoundError: a picture is missing.
    """
    missing = [f"{c}/{n}.png" for n in names for c in COLUMNS if not (folder / c / f"{n}.png").is_file()]
    if missing:
        raise FileNotFoundError(f"the demo has no {', '.join(missing)} in {folder}")
    page = folder / "index.html"
    page.write_text(page_text(names, figures, command), encoding="utf-8")
    return page


def page_text(names: Sequence[str], figures: Figures, command: str) -> str:
    """The page's HTML, with links relative to its folder."""
    heads = "".join(f"<th>{html.escape(title)}</th>" for title in COLUMNS.values())
    rows = "\n".join(_photo_row(name) for name in names)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Colorization demo</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Grey photos, coloured</h1>
<p>The fresh run was trained by this demo within minutes, by</p>
<pre>{html.escape(command)}</pre>
<p>It has seen crops from the left 60 % of these very photos, so it shows that training works, not how well the method
does on new photos. The shipped model is <code>pretrained/{SHIPPED}</code>; its card names its data and figures. All
get the grey photo alone, without a prompt, and keep its lightness. The vivid sample takes {VIVID_STEPS} steps and its full
chroma; the model's default takes one step, which draws the expected colour, a calmer and on average nearer guess. A click opens a picture at its own size.</p>
<table class="photos">
<tr>{heads}</tr>
{rows}
</table>
<h2>Figures</h2>
{_figures_table(figures)}
</body>
</html>
"""


def _photo_row(name: str) -> str:
    cells = []
    for column, title in COLUMNS.items():
        link = html.escape(f"{column}/{name}.png")
        text = html.escape(f"{name}, {title}")
        cells.append(f'<td><a href="{link}"><img src="{link}" alt="{text}"></a></td>')
    return f"<tr>{''.join(cells)}</tr>"


def _figures_table(figures: Figures) -> str:
    metrics = [m for m in METRICS if any(m in values for values in figures.values())]
    heads = "".join(f"<th>{html.escape(METRICS[metric])}</th>" for metric in metrics)
    rows = []
    for title, values in figures.items():
        cells = "".join(f"<td>{values[m]:.2f}</td>" if m in values else "<td>-</td>" for m in metrics)
        rows.append(f"<tr><th>{html.escape(title)}</th>{cells}</tr>")
    return (
        '<table class="figures">\n<caption>64-pixel crops from the right part of all built-in photos'
        f" (validation), mean over images</caption>\n<tr><th></th>{heads}</tr>\n{chr(10).join(rows)}\n</table>"
    )


def _photo_files() -> list[Path]:
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    files = [folder / name for name in PHOTOS if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError("scikit-image holds none of the demo's photos; run make setup again")
    return files


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Parses the options, then runs the demo."""
    from runs.logs import quiet_libraries, run_log

    options, overrides = parse(DemoOptions, sys.argv[1:], USAGE)
    quiet_libraries()
    with run_log(None):
        demo(options, overrides)


if __name__ == "__main__":
    run_door(main)
