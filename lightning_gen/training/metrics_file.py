"""A CSV log that belongs to a run, not to a process: a continued run continues its file."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger

__all__ = ["MetricsFile", "set_aside"]


class MetricsFile(CSVLogger):
    """Logs to ``<save_dir>/<name>/metrics.csv``, one row per call, on disk at once.

    Lightning's logger opens a new version folder for every start, or deletes the file when told to stay in one.

    Args:
        save_dir: parent folder of all runs.
        name: the run.
        filename: name of the file in the run folder.
    """

    def __init__(self, save_dir: str, name: str, filename: str = "metrics.csv") -> None:
        super().__init__(save_dir, name=name, version="")
        self.filename = filename
        self._writer: _Writer | None = None

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return self.root_dir

    @property
    def experiment(self) -> Any:
        """The writer; one that swallows everything on ranks other than 0."""
        if self._writer is None:
            self._writer = _Writer(Path(self.log_dir) / self.filename, self._on_rank_zero())
        return self._writer

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write one row.

        Args:
            metrics: name -> number or scalar tensor.
            step: optimiser step the numbers belong to.
        """
        self.experiment.log_metrics(metrics, step)
        self.experiment.save()

    def save(self) -> None:
        """Nothing: every row is on disk already."""

    def finalize(self, status: str) -> None:
        """Nothing: every row is on disk already.

        Args:
            status: how the run ended.
        """

    def start_anew(self) -> None:
        """Begin an empty file; one that exists is kept under another name."""
        if self._on_rank_zero():
            set_aside(Path(self.log_dir) / self.filename)
            self._writer = None

    def rewind(self, step: int) -> None:
        """Drop the rows that a killed run wrote after the checkpoint it is continued from.

        Args:
            step: optimiser steps taken in the checkpoint; rows of later steps are written again by the continued run.
        """
        self.experiment.rewind(step)

    @staticmethod
    def _on_rank_zero() -> bool:
        from lightning.pytorch.utilities import rank_zero_only

        return int(getattr(rank_zero_only, "rank", 0) or 0) == 0


class _Writer:
    """Rows of a CSV file whose columns may grow."""

    def __init__(self, file: Path, enabled: bool) -> None:
        self.file = file
        self.enabled = enabled
        self.columns, self.rows = _read(file) if enabled else ([], [])
        # Only the columns are needed from here on: rows are appended.
        self.rows.clear()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Collect one row."""
        values = {key: value.item() if hasattr(value, "item") else value for key, value in metrics.items()}
        self.rows.append({**values, "step": 0 if step is None else step})

    def log_hparams(self, params: Mapping[str, Any]) -> None:
        """Nothing: config.yaml in the same folder holds everything."""

    def save(self) -> None:
        """Append the collected rows; on a new column the file is written again with it."""
        if not self.enabled or not self.rows:
            self.rows.clear()
            return
        new = [key for row in self.rows for key in row if key not in self.columns]
        if new:
            _, written = _read(self.file)
            self.columns = sorted({*self.columns, *new}, key=lambda key: (key != "step", key))
            _write(self.file, self.columns, [*written, *self.rows])
        else:
            with self.file.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, self.columns).writerows(self.rows)
        self.rows.clear()

    def rewind(self, step: int) -> None:
        """Keep the rows of the first ``step`` optimiser steps."""
        if self.enabled and self.file.is_file():
            _, written = _read(self.file)
            _write(self.file, self.columns, [row for row in written if int(float(row.get("step") or 0)) < step])


def _read(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    if not file.is_file():
        return [], []
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows: list[dict[str, Any]] = list(reader)
        return list(reader.fieldnames or []), rows


def _write(file: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, file)


def set_aside(file: Path) -> Path | None:
    """Keep a file that is about to be written anew.

    Args:
        file: for instance ``config.yaml``.

    Returns:
        Its new name, ``config-1.yaml`` or the next free number; None if there was no file.
    """
    if not file.exists():
        return None
    number = 1
    while (kept := file.with_name(f"{file.stem}-{number}{file.suffix}")).exists():
        number += 1
    file.rename(kept)
    return kept
