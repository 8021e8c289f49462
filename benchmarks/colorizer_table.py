"""The columns of the comparison of colorizers, what each means, and its rows as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.colorizer_figures import Spread


class Column(NamedTuple):
    """One figure of the table."""

    key: str
    title: str
    digits: int
    meaning: str
    unit: float = 1.0


COLUMNS = (
    Column(
        "delta_e2000",
        "CIEDE2000",
        2,
        "Mean colour difference to the true photo; 1 is just visible; lower is better.",
    ),
    Column(
        "colorfulness_difference",
        "colourfulness difference",
        2,
        "Distance between the mean colourfulness of the results and of the true photos; lower is better.",
    ),
    Column(
        "colorfulness",
        "colourfulness",
        2,
        "How colourful the results are, after Hasler and Suesstrunk; best near the truth's.",
    ),
    Column("psnr", "PSNR, dB", 2, "Peak signal-to-noise ratio against the true photo; higher is better."),
    Column(
        "frechet_squeezenet",
        "Frechet distance, SqueezeNet",
        0,
        "Distance between the SqueezeNet features of all results and of all true photos; lower is better; this is not FID.",
    ),
    Column(
        "diversity",
        "diversity, CIEDE2000",
        2,
        "Mean colour difference between two sampling seeds of one photo; a dash where the seed changes nothing.",
    ),
    Column(
        "best_of_seeds",
        "best of seeds, CIEDE2000",
        2,
        "Colour difference to the truth if the nearest of the seeds is taken for each photo; lower is better.",
    ),
    Column(
        "sampling_spread",
        "sampling spread, CIEDE2000",
        2,
        "Standard deviation of CIEDE2000 over the sampling seeds of one run, mean over runs; a dash where one draw is all.",
    ),
    Column("num_runs", "n", 0, "Training runs that mean and ± are taken over."),
    Column(
        "training_images",
        "photos trained on",
        0,
        "Photos that the drawn weights were trained on, repeats counted.",
    ),
    Column(
        "seconds_per_image",
        "s per image",
        3,
        "Median seconds for one photo at a time; all methods took turns on one machine.",
    ),
    Column(
        "evaluations_per_image",
        "network evaluations",
        0,
        "U-Net evaluations for one photo; guidance doubles them.",
    ),
    Column("trained_parameters", "trained, M", 2, "Millions of parameters that the method trains.", 1e-6),
    Column("parameters", "parameters, M", 2, "Millions of parameters that take part, frozen ones too.", 1e-6),
)
SPREAD_SENTENCE = (
    "A figure is the mean over n training runs ± the sample standard deviation between them, each run with its mean over "
    "the sampling seeds; a single run has no ±."
)


@dataclass(frozen=True)
class Row:
    """A method or baseline: its figures by column key, and what they were taken from."""

    name: str
    figures: Mapping[str, Spread]
    runs: Sequence[str] = ()
    depends_on_seed: bool = False
    sampling_std: Mapping[str, float] = field(
        default_factory=dict
    )  # over the seeds of one run, mean over runs
    draws: Sequence[Mapping[str, float | str]] = field(default_factory=list)

    @property
    def is_method(self) -> bool:
        """Whether it is one of the compared methods and not a baseline."""
        return bool(self.runs)


def shown(value: Spread | None, digits: int = 2, unit: float = 1.0) -> str:
    """A figure as text: mean, and the spread where there is one.

    Example:
        >>> shown(Spread(14.486, 0.124, 3)), shown(Spread(102400.0, 0.0, 3), 0), shown(None)
        ('14.49 ± 0.12', '102400', '-')
    """
    if value is None:
        return "-"
    mean = f"{round(value.mean * unit, digits) + 0.0:.{digits}f}"  # no -0
    return mean if not value.std else f"{mean} ± {value.std * unit:.{digits}f}"


def used_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that at least one row fills."""
    return [column for column in COLUMNS if any(column.key in row.figures for row in rows)]


def cells(row: Row, columns: Sequence[Column]) -> list[str]:
    """The texts of a row."""
    return [shown(row.figures.get(column.key), column.digits, column.unit) for column in columns]


def markdown(rows: Sequence[Row], title: str) -> str:
    """The table and a sentence for each column."""
    columns = used_columns(rows)
    lines = [["", *[column.title for column in columns]], ["---", *["---:"] * len(columns)]]
    lines += [[row.name.replace("|", "\\|"), *cells(row, columns)] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    meanings = "\n".join(f"- **{column.title}**: {column.meaning}" for column in columns)
    return f"{title} {SPREAD_SENTENCE}\n\n{table}\n\n{meanings}\n"


def print_table(heads: Sequence[str], lines: Sequence[Sequence[str]], title: str) -> None:
    """A table on the screen; the first column holds names."""
    table = Table(title=title)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right")
    for line in lines:
        table.add_row(*line)
    Console(width=max(110, 17 * len(heads))).print(table, markup=False)
