"""``python -m benchmarks report``: tables and plots from the files of benchmarks/results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine

RESULTS = Path(__file__).parent / "results"


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Every run in `folder` by file name.

    Raises:
        ValueError: a file is no result of these commands.
    """
    runs = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or not {"machine", "rows"} <= content.keys():
            raise ValueError(f"{path} is no result of `python -m benchmarks`")
        runs[path.name] = content
    return runs


def markdown(runs: dict[str, dict[str, Any]]) -> str:
    """One section per file: the machine, its measured limits, a table per op."""
    return "\n".join(line for name, run in runs.items() for line in _section(name, run))


def _section(name: str, run: dict[str, Any]) -> Iterator[str]:
    yield f"## {name}\n"
    yield machine.headline(run["machine"], run["machine"]["threads"]) + ".\n"
    limits = ", ".join(
        f"{k.replace('_gb_s', ' GB/s').replace('_', ' ')}: {v:.1f}"
        for k, v in run["limits"].items()
    )
    if limits:
        yield f"Limits measured in the same run: {limits}.\n"
    yield "| op | shape | | median | GB/s | best backend is faster by |"
    yield "|---|---|---|---:|---:|---:|"
    for row in run["rows"]:
        ratio = row["median_us"] / _best(run, row)["median_us"]
        yield (
            f"| {row['op']} | {row['shape']} | {row['name']} | {_time(row['median_us'])} "
            f"| {row['gb_s']:.1f} | {ratio:.2f}x |"
        )
    yield ""


def _best(run: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    same = (
        r
        for r in run["rows"]
        if (r["op"], r["shape"], r["kind"]) == (row["op"], row["shape"], "backend")
    )
    return min(same, key=lambda r: r["median_us"])


def _time(us: float) -> str:
    return f"{us:.1f} us" if us < 1000 else f"{us / 1000:.2f} ms"


def speedups(run: dict[str, Any]) -> str:
    """A row per op and shape: the best backend's time, and how much faster it is than the rest."""
    lines = [
        machine.headline(run["machine"], run["machine"]["threads"]) + ".",
        "",
        "| op | shape | backend | median | GB/s | times as fast as |",
        "|---|---|---|---:|---:|---|",
    ]
    for best, others in _shapes(run):
        ratios = "; ".join(f"{name}: {_ratio(ratio)}" for name, ratio in others.items())
        rate = "" if best["gflop_s"] else f"{best['gb_s']:.1f}"  # arithmetic bounds it, not memory
        lines.append(
            f"| {best['op']} | {best['shape']} | {best['name']} | {_time(best['median_us'])} "
            f"| {rate} | {ratios} |"
        )
    limits = machine.bandwidths(run["limits"])
    return "\n".join([*lines, "", f"Limits of memory measured in the same run: {limits}.", ""])


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def _shapes(run: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """For each op and shape the best backend's row, and ratios of the others' medians to its."""
    for op, shape in dict.fromkeys((row["op"], row["shape"]) for row in run["rows"]):
        rows = [row for row in run["rows"] if (row["op"], row["shape"]) == (op, shape)]
        best = _best(run, rows[0])
        yield best, {r["name"]: r["median_us"] / best["median_us"] for r in rows if r is not best}


def filled(text: str, runs: dict[str, dict[str, Any]]) -> str:
    """`text` with the table of each result in it made anew.

    A table stands between the lines ``<!-- results: FILE -->`` and ``<!-- end of results -->``.

    Raises:
        ValueError: there is no such file, or a table does not end.
    """
    parts = text.split("<!-- results: ")
    for i, part in enumerate(parts[1:], 1):
        name, _, rest = part.partition(" -->")
        _, end, after = rest.partition("<!-- end of results -->")
        if name not in runs or not end:
            raise ValueError(f"the table of {name!r} has no results or no end")
        parts[i] = f"{name} -->\n\n{speedups(runs[name])}\n{end}{after}"
    return "<!-- results: ".join(parts)


def speedup_plot(run: dict[str, Any], path: Path) -> None:
    """How many times as fast the best backend is, on a logarithmic axis.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [
        (f"{best['op']}, {best['shape']}", name, ratio)
        for best, others in _shapes(run)
        for name, ratio in others.items()
    ]
    figure, axis = plt.subplots(figsize=(9, 0.27 * len(bars) + 1), layout="constrained")
    names = list(dict.fromkeys(name for _, name, _ in bars))
    for y, (label, name, ratio) in enumerate(bars):
        axis.barh(y, ratio, color=f"C{names.index(name) % 10}")
        axis.annotate(f" {_ratio(ratio)} x {name}", (max(ratio, 1), y), va="center", fontsize=7)
        if y == 0 or bars[y - 1][0] != label:
            axis.annotate(label + "  ", (1, y), va="center", ha="right", fontsize=7)
    axis.set_xscale("log")
    axis.set_xlim(1, 4 * max(ratio for _, _, ratio in bars))
    axis.set_ylim(len(bars) - 0.4, -0.6)  # the first on top
    axis.set_yticks([])
    axis.set_xlabel("times as fast")
    _save(figure, path)


def plot(run: dict[str, Any], path: Path) -> None:
    """Achieved bandwidth of what memory bounds, with the measured limit drawn in.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in run["rows"] if not row["gflop_s"]]
    labels = [f"{row['op']}, {row['shape']}\n{row['name']}" for row in rows]
    colours = ["tab:blue" if row["kind"] == "backend" else "lightgray" for row in rows]
    figure, axis = plt.subplots(figsize=(9, 0.45 * len(rows) + 1.5), layout="constrained")
    axis.barh(labels, [row["gb_s"] for row in rows], color=colours)
    for (name, value), style in zip(run["limits"].items(), ("-", "--", ":"), strict=False):
        if name.endswith("gb_s"):
            label = f"{name.split('_')[0]} limit, {value:.1f} GB/s"
            axis.axvline(value, color="tab:red", linestyle=style, label=label)
    axis.set_ylim(len(rows) - 0.4, -0.6)  # the first on top
    axis.set_xlabel("GB/s of the bytes that must be moved")
    axis.tick_params(axis="y", labelsize=7)
    if run["limits"]:
        axis.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """The same small file from the same results: text as text, no date."""
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "bitdance", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
