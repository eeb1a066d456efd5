"""The log of a run: a CSV file that stays readable when the run is killed, and its plot."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitdance.io.files import replace_file, require_file, write_text
from bitdance.io.validation import brief

__all__ = ["Log"]


class Log:
    """A CSV file whose first column is the step.

    Args:
        path: the file; lines after `step`, which a killed run may have left, are removed.
        columns: names of the other columns.
        step: step at which the run starts or resumes.

    Raises:
        ValueError: the file has other columns, or is damaged.
        OSError: it cannot be read or written, or is a broken link.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        self._path = path
        self._columns = ["step", *columns]
        header = ",".join(self._columns)
        text = ""
        if os.path.lexists(path):  # a broken link is no missing log
            text = require_file(path).read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines(keepends=True)
        if lines and lines[0].strip() != header:
            raise ValueError(f"{path} has the columns {brief(lines[0].strip())}, expected {header}")
        complete = [line for line in lines[1:] if line.endswith("\n")]
        kept = [line for line in complete if self._step(line) <= step]
        write_text(path, "".join([header + "\n", *kept]))

    def _step(self, line: str) -> int:
        """The step of a line, whose other values must be numbers: the plot reads them."""
        step, *values = line.split(",")
        try:
            if len([float(value) for value in values]) == len(self._columns) - 1:
                return int(step)
        except ValueError:
            pass
        raise ValueError(
            f"{self._path} is damaged: a line must have a step and {len(self._columns) - 1} "
            f"numbers, got {brief(line.strip())}"
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line and sync it to the disk."""
        numbers = [f"{values[name]:.6g}" for name in self._columns[1:]]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(",".join([str(step), *numbers]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def plot(self, path: Path) -> None:
        """Plot every column over the steps; does nothing without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        with self._path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            return
        steps = [int(row["step"]) for row in rows]
        names = self._columns[1:]
        width = 3
        height = -(-len(names) // width)
        figure = Figure(figsize=(4 * width, 2.6 * height), layout="constrained")
        for i, name in enumerate(names):
            axes = figure.add_subplot(height, width, i + 1)
            values = [float(row[name]) for row in rows]
            axes.plot(steps, values, linewidth=1)
            axes.set_title(name, fontsize=9)
            axes.tick_params(labelsize=7)
            if name == "loss" and min(values) > 0:
                axes.set_yscale("log")
        with replace_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)
