"""Markdown tables of a result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import machine

Run = dict[str, Any]


def everything(name: str, run: Run) -> Iterator[str]:
    """Lines of a section: the machine, its measured limits, every row."""
    yield f"## {name}\n"
    yield machine.headline(run["machine"], run["machine"]["threads"]) + ".\n"
    limits = machine.bandwidths(run["limits"])
    if limits:
        yield f"Limits measured in the same run: {limits}.\n"
    if run["rows"]:
        yield "| op | shape | | median | least | GB/s | best backend is faster by |"
        yield "|---|---|---|---:|---:|---:|---:|"
    for row in run["rows"]:
        times = row["median_us"] / best(run, row)["median_us"]
        least = time(row["min_us"]) if "min_us" in row else ""
        yield (
            f"| {row['op']} | {row['shape']} | {row['name']} | {time(row['median_us'])} | {least} "
            f"| {row['gb_s']:.1f} | {times:.2f}x |"
        )
    yield ""
    if run.get("images"):
        yield images(run)
    if run.get("model"):
        yield model(run)
    if run.get("probes"):
        yield probes(run)


def speedups(run: Run) -> str:
    """A row per op and shape: the best backend's time, and how much faster it is than the rest."""
    lines = [
        machine.headline(run["machine"], run["machine"]["threads"]) + ".",
        "",
        "| op | shape | backend | median | GB/s | times as fast as |",
        "|---|---|---|---:|---:|---|",
    ]
    for fastest, others in shapes(run):
        ratios = "; ".join(f"{name}: {ratio(value)}" for name, value in others.items())
        rate = "" if fastest["gflop_s"] else f"{fastest['gb_s']:.1f}"  # arithmetic bounds it
        lines.append(
            f"| {fastest['op']} | {fastest['shape']} | {fastest['name']} "
            f"| {time(fastest['median_us'])} | {rate} | {ratios} |"
        )
    limits = machine.bandwidths(run["limits"])
    return "\n".join([*lines, "", f"Limits of memory measured in the same run: {limits}.", ""])


def images(run: Run) -> str:
    """A row per model, batch and path: an image's time, its parts, and what it is held against."""
    lines = [
        "| model | batch | path | ms an image | trunk | head | decoder | bound | over products |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in run["images"]:
        parts = [row["parts_ms"].get(part) for part in ("trunk", "head", "decoder")]
        bound = row.get("bound_ms", {}).get("whole")
        alone = image(run, row["model"], row["batch"], "products alone")
        over = f"{row['ms'] / alone['ms']:.2f}" if alone else ""
        cells = [milliseconds(ms) if ms is not None else "" for ms in (*parts, bound)]
        part_run = row.get("ar_steps_timed", 0) < row.get("ar_steps", 0)
        steps = f" (from {row['ar_steps_timed']} of {row['ar_steps']} AR steps)" if part_run else ""
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['path']}{steps} "
            f"| {milliseconds(row['ms'])} | {' | '.join(cells)} | {over} |"
        )
    return "\n".join([*lines, ""])


def model(run: Run) -> str:
    """The figures of the programs of ``benchmarks.model``."""
    lines = ["| benchmark | figure | |", "|---|---|---:|"]
    for name, content in run.get("model", {}).items():
        for figure, value in _figures(content):
            lines.append(f"| {name} | {figure} | {value:.4g} |")
    return "\n".join([*lines, ""])


def _figures(content: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of nested tables under their joined names; not those of the machine."""
    for name, value in content.items():
        if isinstance(value, dict) and name != "machine":
            yield from _figures(value, f"{prefix}{name}, ")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def probes(run: Run) -> str:
    """What a card answered to the questions of ``benchmarks.gpu.limits``."""
    names = {"us": "us", "gb_s": "GB/s", "tflop_s": "TFLOP/s", "weight_gb_s": "GB/s of weights"}
    lines = ["| probe | setting | |", "|---|---|---|"]
    for probe in run["probes"]:
        figures = [f"{probe[key]:.2f} {unit}" for key, unit in names.items() if key in probe]
        figures += [probe["note"]] if "note" in probe else []
        lines.append(f"| {probe['probe']} | {probe['setting']} | {', '.join(figures)} |")
    return "\n".join([*lines, ""])


def shapes(run: Run) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """For each op and shape the best backend's row, and ratios of the others' medians to its."""
    for op, shape in dict.fromkeys((row["op"], row["shape"]) for row in run["rows"]):
        rows = [row for row in run["rows"] if (row["op"], row["shape"]) == (op, shape)]
        fastest = best(run, rows[0])
        others = {
            r["name"]: r["median_us"] / fastest["median_us"] for r in rows if r is not fastest
        }
        yield fastest, others


def best(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """The fastest backend's row for the op and shape of `row` (else the fastest baseline's)."""
    same = [r for r in run["rows"] if (r["op"], r["shape"]) == (row["op"], row["shape"])]
    backends = [r for r in same if r["kind"] == "backend"]
    return min(backends or same, key=lambda r: r["median_us"])


def image(run: Run, model: str, batch: int, path: str) -> dict[str, Any] | None:
    """The record of a whole image, if there is one."""
    wanted = (model, batch, path)
    found = (r for r in run.get("images", []) if (r["model"], r["batch"], r["path"]) == wanted)
    return next(found, None)


def time(us: float) -> str:
    """For people."""
    return f"{us:.1f} us" if us < 1000 else f"{us / 1000:.2f} ms"


def milliseconds(ms: float) -> str:
    """For people, three digits."""
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def ratio(value: float) -> str:
    """For people."""
    return f"{value:.2f}" if value < 2 else f"{value:.1f}" if value < 10 else f"{value:.0f}"
