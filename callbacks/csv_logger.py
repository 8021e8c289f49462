"""metrics.csv in the run folder, continued on resume."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
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
        filename: name of the file in it.
    """

    def __init__(self, folder: str | Path, filename: str = "metrics.csv") -> None:
        super().__init__()
        self.path = Path(folder) / filename
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Empty: the run folder names the run."""
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Appends one row."""
        row = {"step": step, **{k: v.item() if isinstance(v, Tensor) else v for k, v in metrics.items()}}
        columns = self._read_columns()
        fresh = [name for name in row if name not in columns]
        if fresh:
            self._rewrite(self.rows(), [*columns, *fresh])
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns or []).writerow(row)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml in the run folder holds the settings."""

    @rank_zero_only
    def drop_from(self, step: int, *, keep: str = "") -> None:
        """Removes the rows of `step` and later, which a run resumed there writes again; rows with metric `keep` stay."""
        rows = self.rows()
        kept = [row for row in rows if not row["step"] or int(row["step"]) < step or row.get(keep)]
        if len(kept) < len(rows):
            self._rewrite(kept, self._read_columns())

    @rank_zero_only
    def drop_metrics(self, prefix: str) -> None:
        """Removes the rows that hold a metric whose name starts with `prefix`, which are written again."""
        rows = self.rows()
        kept = [row for row in rows if not any(v for k, v in row.items() if k.startswith(prefix))]
        if len(kept) < len(rows):
            self._rewrite(kept, self._read_columns())

    def rows(self) -> list[dict[str, str]]:
        """The rows of the file; a row that a kill has cut short is left out."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        return [row for row in csv.DictReader(whole) if None not in row.values()]

    def _read_columns(self) -> list[str]:
        if self._columns is not None:
            return self._columns
        columns: list[str] = []
        if self.path.is_file():
            text = self.path.read_text(encoding="utf-8")
            columns = next(csv.reader([text.split("\n", 1)[0]]), []) if "\n" in text else []
            if text and not text.endswith("\n"):
                self._rewrite(self.rows(), columns)
        self._columns = columns
        return columns

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        if columns:
            writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self._columns = columns
