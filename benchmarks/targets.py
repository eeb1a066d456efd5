"""The figures that this library sets out to reach, each against what was measured.

A target is a number, a measure that finds what was reached in a result, and which side of the
number is good. Where several shapes belong to a target the worst of them counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import tables

Run = dict[str, Any]


class Target(NamedTuple):
    """One line of the table, and of ``targets.json``.

    Attributes:
        device: "cpu" or "cuda".
        what: the op and shapes.
        number: to be reached.
        unit: "x", "%", "us" or "ms"; of the last two less is better.
        versus: what a ratio or share is taken of.
        measure: key in MEASURES.
        arguments: of the measure, before the result.
    """

    device: str
    what: str
    number: float
    unit: str
    versus: str
    measure: str
    arguments: Sequence[Any]

    def goal(self) -> str:
        """For people."""
        sign = "at most" if self.less() else "at least"
        return f"{sign} {self.figure(self.number)} {self.versus}".rstrip()

    def worst(self, run: Run) -> float | None:
        """What counts of a result; None where it has nothing."""
        values = MEASURES[self.measure](*self.arguments, run)
        return (max if self.less() else min)(values) if values else None

    def state(self, value: float) -> str:
        """Whether `value` is on the good side."""
        good = value <= self.number if self.less() else value >= self.number
        return "**reached**" if good else "missed"

    def less(self) -> bool:
        """Whether less is better."""
        return self.unit in ("us", "ms") or self.versus.endswith("alone")

    def figure(self, value: float) -> str:
        """For people."""
        if self.unit == "%":
            return f"{100 * value:.0f}%"
        shown = tables.ratio(value) + "x"
        return shown if self.unit == "x" else f"{tables.milliseconds(value)} {self.unit}"


def table(runs: Mapping[str, Run]) -> str:
    """Every target with the figure of the newest result that has measured it."""
    newest = sorted(runs.values(), key=lambda run: run["machine"]["date"], reverse=True)
    rows = []
    for target in TARGETS:
        of_device = [r for r in newest if r["machine"]["device"] == target.device]
        values = (target.worst(run) for run in of_device if not run.get("dry_run"))
        value = next((value for value in values if value is not None), None)
        found = (
            ("", "not measured") if value is None else (target.figure(value), target.state(value))
        )
        device = "GPU" if target.device == "cuda" else "CPU"
        rows.append((device, target.what, target.goal(), *found))
    return tables.markdown({"device": "", "what": "", "target": "", "measured": ">", "": ""}, rows)


def _best(run: Run, op: str, shape: str) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """Best backend and ratios of the others, for shapes that match the pattern `shape`."""
    for best, others in tables.shapes(run):
        if best["op"] == op and re.search(shape, best["shape"]):
            yield best, others


def _share(op: str, shape: str, limit: str, run: Run) -> list[float]:
    of = run["limits"].get(limit)
    return [best["gb_s"] / of for best, _ in _best(run, op, shape)] if of else []


def _speedup(op: str, shape: str, baseline: str, run: Run) -> list[float]:
    return [others[baseline] for _, others in _best(run, op, shape) if baseline in others]


def _microseconds(op: str, shape: str, run: Run) -> list[float]:
    return [best["median_us"] for best, _ in _best(run, op, shape)]


def _matrix_share(op: str, shape: str, run: Run) -> list[float]:
    rate = run["limits"].get("bf16_tflop_s")
    return [best["gflop_s"] / 1e3 / rate for best, _ in _best(run, op, shape)] if rate else []


def _memory(op: str, shape: str, baseline: str, run: Run) -> list[float]:
    rows = [row for row in run["rows"] if row["name"] == baseline and row.get("peak_mb")]
    peaks = {(row["op"], row["shape"]): row["peak_mb"] for row in rows}
    best = [b for b, _ in _best(run, op, shape) if b.get("peak_mb") and (op, b["shape"]) in peaks]
    return [peaks[op, row["shape"]] / row["peak_mb"] for row in best]


def _image_ratio(
    model: str, batches: Sequence[int], path: str, part: str | None, run: Run
) -> list[float]:
    ratios = []
    for batch in batches:
        rows = [tables.image(run, model, batch, name) or {} for name in ("fast", path)]
        fast, other = (r.get("parts_ms", {}).get(part) if part else r.get("ms") for r in rows)
        if fast and other:
            ratios.append(other / fast)
    return ratios


def _over_products(model: str, batches: Sequence[int], run: Run) -> list[float]:
    return [1 / ratio for ratio in _image_ratio(model, batches, "products alone", None, run)]


def _image_time(model: str, batches: Sequence[int], run: Run) -> list[float]:
    rows = (tables.image(run, model, batch, "fast") for batch in batches)
    return [row["ms"] for row in rows if row]


def _model_figure(name: str, figure: str, run: Run) -> list[float]:
    content = run.get("model", {}).get(name, {})
    return [content[figure]] if figure in content else []


MEASURES: dict[str, Callable[..., list[float]]] = {
    "share": _share,  # bandwidth of the best backend in a limit of the same run
    "speedup": _speedup,  # how many times as fast the best backend is
    "microseconds": _microseconds,  # of the best backend
    "matrix_share": _matrix_share,  # its arithmetic in the rate of a large product
    "memory": _memory,  # peak of a baseline over that of the best backend
    "image_ratio": _image_ratio,  # of each batch, `path` over the default, of all or of a part
    "over_products": _over_products,  # an image over its products alone
    "image_time": _image_time,  # milliseconds
    "model_figure": _model_figure,  # of ``python -m benchmarks model``
}

TARGETS = [
    Target._make([*row[:6], row[6:]])
    for row in json.loads(Path(__file__).with_suffix(".json").read_text())
]
