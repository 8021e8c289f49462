"""metrics.csv in the run folder, continued on resume."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from datamodules.atomic_files import write_text


class AppendingCSVLogger(Logger):
    """Writes each row of metrics at once to `metrics.csv` and appends to the file that is there.

    Lightning's CSVLogger deletes the file of the run it resumes (read in its _check_log_dir_exists). A new metric
    becomes a new column: the file is rewritten beside itself and renamed. `step` counts from 0, as in Lightning.

    Args:
        folder: the run folder.
    """

    name = version = ""  # the run folder names the run

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Appends one row."""
        row = {"step": step, **{k: v.item() if isinstance(v, Tensor) else v for k, v in metrics.items()}}
        columns = list(self._columns) or next(csv.reader(self._whole_lines()), [])
        columns += [name for name in row if name not in columns]
        if columns != self._columns:
            self._rewrite(self.rows(), columns)
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns).writerow(row)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml in the run folder holds the settings."""

    @rank_zero_only
    def drop_from(self, step: int, *, keep: str = "") -> None:
        """Removes the rows of `step` and later, which a run resumed there writes again; rows with metric `keep` stay."""
        self._keep(lambda row: not row["step"] or int(row["step"]) < step or bool(row.get(keep)))

    @rank_zero_only
    def drop_metrics(self, prefix: str) -> None:
        """Removes the rows that hold a metric whose name starts with `prefix`, which are written again."""
        self._keep(lambda row: not any(v for k, v in row.items() if k.startswith(prefix)))

    def rows(self) -> list[dict[str, str]]:
        """The rows of the file; a row that a kill has cut short is left out."""
        return [row for row in csv.DictReader(self._whole_lines()) if None not in row.values()]

    def _whole_lines(self) -> list[str]:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.is_file() else []
        return [line for line in lines if line.endswith("\n")]

    def _keep(self, wanted: Callable[[dict[str, str]], bool]) -> None:
        rows = self.rows()
        kept = [row for row in rows if wanted(row)]
        if len(kept) < len(rows):
            self._rewrite(kept, list(rows[0]))

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self._columns = columns
