"""The figures that this library sets out to reach, each with what bounds it and what was measured.

A target is a number and a measure that finds what was reached at a shape. Each shape is judged by
itself, by the newest result that has measured that very shape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import bounds, tables
from benchmarks.shapes import all_benches
from bitdance.models.config import PRESETS

Run = dict[str, Any]
_EVALUATIONS = 101


class Target(NamedTuple):
    """Some lines of the table, and one of ``targets.json``.

    Attributes:
        device: "cpu" or "cuda".
        what: the op, or the part of a model.
        number: to be reached.
        less: whether less is better.
        unit: "x", "%", "us", "ms" or "TFLOP/s".
        versus: what a ratio or share is taken of.
        measure: key in MEASURES.
        arguments: of the measure.
    """

    device: str
    what: str
    number: float
    less: bool
    unit: str
    versus: str
    measure: str
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Target:
        """From a line of the file, which has the number under "at_least" or "at_most"."""
        arguments, less = dict(line), "at_most" in line
        number = arguments.pop("at_most" if less else "at_least")
        names = ("device", "what", "unit", "versus", "measure")
        named = {name: arguments.pop(name) for name in names}
        return cls(number=number, less=less, arguments=arguments, **named)

    def goal(self) -> str:
        """For people."""
        sign = "at most" if self.less else "at least"
        return f"{sign} {self.figure(self.number)} {self.versus}".rstrip()

    def shapes(self) -> Sequence[str]:
        """Names of its shapes: of the op's those that are timed on the device, or batches."""
        given = self.arguments
        if "shapes" in given:
            timings = all_benches()[given["op"]].timings
            on_device = [t.name for t in timings if self.device in t.devices]
            return [name for name in on_device if re.search(given["shapes"], name)]
        if "batches" in given:
            return [f"batch {batch}" for batch in given["batches"]]
        return [given["shape"]]

    def value(self, shape: str, run: Run) -> float | None:
        """What a result has measured at a shape; None where it has not."""
        return MEASURES[self.measure](self.arguments, shape, run)

    def bound(self, shape: str, run: Run) -> str:
        """The least time at a shape, and what takes it, by the limits of a run; empty if none."""
        given = self.arguments
        if self.measure == "memory":
            return ""
        if "op" in given:
            found = bounds.of_op(given["op"], shape, run)
            return f"{tables.time(1e6 * found.seconds)}, {found.by}" if found else ""
        if "batches" not in given:
            return ""
        alone = tables.image(run, given["model"], _batch(shape), tables.BOUND)
        if alone is not None:
            return f"{tables.milliseconds(alone['ms'])} ms"
        parts = bounds.of_image(given["model"], _batch(shape), run)
        if parts is None:
            return ""
        if self.measure == "evaluation":
            count = PRESETS[given["model"]].ar_steps * _EVALUATIONS
            return f"{1e3 * parts['head'] / count:.1f} us"
        return f"{tables.milliseconds(parts[given.get('part') or 'whole'])} ms"

    def state(self, value: float) -> str:
        """Whether `value` is on the good side."""
        good = value <= self.number if self.less else value >= self.number
        return "**reached**" if good else "missed"

    def figure(self, value: float) -> str:
        """For people."""
        if self.unit == "%":
            return f"{100 * value:.0f}%"
        if self.unit == "TFLOP/s":
            return f"{value:.0f} {self.unit}"
        shown = tables.ratio(value) + "x"
        return shown if self.unit == "x" else f"{tables.milliseconds(value)} {self.unit}"


def table(runs: Mapping[str, Run]) -> str:
    """Every target at every shape, by the newest result that has measured it.

    The bound of a shape that none has measured is by the limits of the newest result with any.
    """
    newest = sorted(
        (pair for pair in runs.items() if not pair[1].get("dry_run")),
        key=lambda pair: pair[1]["machine"]["date"],
        reverse=True,
    )
    rows = (row for target in TARGETS for shape in target.shapes()
            for row in [_row(target, shape, newest)])  # fmt: skip
    columns = ("device", "what", "shape", "target", "bound")
    return tables.markdown(dict.fromkeys(columns, "") | {"measured": ">", "": "", "file": ""}, rows)


def _row(target: Target, shape: str, newest: Sequence[tuple[str, Run]]) -> Sequence[str]:
    of_device = [(n, run) for n, run in newest if run["machine"]["device"] == target.device]
    device = "GPU" if target.device == "cuda" else "CPU"
    begin = (device, target.what, shape, target.goal())
    for name, run in of_device:
        value = target.value(shape, run)
        if value is not None:
            bound = target.bound(shape, run) or "not counted"
            return (*begin, bound, target.figure(value), target.state(value), name)
    for name, run in of_device:
        bound = target.bound(shape, run)
        if bound:
            return (*begin, bound, "", "not measured", f"limits: {name}")
    return (*begin, "not counted", "", "not measured", "")


def _batch(shape: str) -> int:
    return int(shape.removeprefix("batch "))


Given = Mapping[str, Any]


def _best(
    given: Given, shape: str, run: Run
) -> Iterator[tuple[dict[str, Any], dict[str, list[float]]]]:
    """Best backend and ratios of the others at the shape, if it was timed."""
    for kind in ("rows", "models"):
        yield from tables.shapes(run, kind, (given["op"], shape))


def _share(given: Given, shape: str, run: Run) -> float | None:
    of = run["limits"].get(given["of"])
    return next((best["gb_s"] / of for best, _ in _best(given, shape, run) if of), None)


def _bound_share(given: Given, shape: str, run: Run) -> float | None:
    bound = bounds.of_op(given["op"], shape, run)
    shares = (
        1e6 * bound.seconds / best["median_us"] for best, _ in _best(given, shape, run) if bound
    )
    return next(shares, None)


def _speedup(given: Given, shape: str, run: Run) -> float | None:
    over = given["over"]
    return next((o[over][0] for _, o in _best(given, shape, run) if over in o), None)


def _microseconds(given: Given, shape: str, run: Run) -> float | None:
    return next((best["median_us"] for best, _ in _best(given, shape, run)), None)


def _tflops(given: Given, shape: str, run: Run) -> float | None:
    return next((best["gflop_s"] / 1e3 for best, _ in _best(given, shape, run)), None)


def _memory(given: Given, shape: str, run: Run) -> float | None:
    peaks = {
        row["name"]: row["peak_mb"]
        for row in run["rows"]
        if (row["op"], row["shape"]) == (given["op"], shape) and row.get("peak_mb")
    }
    best = next((best["name"] for best, _ in _best(given, shape, run)), None)
    known = best in peaks and given["over"] in peaks
    return peaks[given["over"]] / peaks[best] if known and best is not None else None


def _image_ratio(
    given: Given, shape: str, run: Run, path: str = "published", name: str = "fast"
) -> float | None:
    part = given.get("part")
    rows = [tables.image(run, given["model"], _batch(shape), way) or {} for way in (name, path)]
    fast, other = (r.get("parts_ms", {}).get(part) if part else r.get("ms") for r in rows)
    return other / fast if fast and other else None


def _over_bound(given: Given, shape: str, run: Run) -> float | None:
    return _image_ratio(given, shape, run, path="fast", name=tables.BOUND)


def _image_time(given: Given, shape: str, run: Run) -> float | None:
    row = tables.image(run, given["model"], _batch(shape), "fast")
    return row["ms"] if row else None


def _evaluation(given: Given, shape: str, run: Run) -> float | None:
    rows = 2 * _batch(shape) * PRESETS[given["model"]].parallel_num
    times = [
        record["us"]
        for record in run.get("ways", ())
        if record["what"] == "plan" and record["part"] == "head" and record["repeatable"]
        and (record["model"], record["rows"]) == (given["model"], rows)
    ]  # fmt: skip
    return min(times, default=None)


MEASURES: dict[str, Callable[[Given, str, Run], float | None]] = {
    "share": _share,  # bandwidth of the best backend in one of the same run
    "bound_share": _bound_share,  # the bound of `benchmarks.bounds` over its time
    "speedup": _speedup,  # how many times as fast the best backend is
    "microseconds": _microseconds,  # of the best backend
    "tflops": _tflops,  # its arithmetic
    "memory": _memory,  # peak of a baseline over that of the best backend
    "image_ratio": _image_ratio,  # the published path over the default, of all or of a part
    "over_bound": _over_bound,  # an image over its multiply-adds
    "image_time": _image_time,  # milliseconds
    "evaluation": _evaluation,  # microseconds by the fastest plan
}

TARGETS = [
    Target.of(line)
    for line in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
]
