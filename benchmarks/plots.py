"""Plots of a result: bandwidth against size, speed-ups, whole images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import tables

Run = dict[str, Any]


def draw(run: Run, stem: Path) -> list[Path]:
    """Draw what there is to draw in `run`; returns the files, ``STEM.svg`` among them.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    kinds: dict[str, tuple[Callable[[Run], list[Any]], Callable[[Run, Path], None]]] = {
        ".svg": (_bars, speedups),
        ".bandwidth.svg": (_bounded, bandwidth),
        ".images.svg": (lambda run: run.get("images", []), images),
    }
    made = []
    for suffix, (content, plot) in kinds.items():
        if content(run):
            made.append(stem.with_name(stem.name + suffix))
            plot(run, made[-1])
    return made


def _bars(run: Run) -> list[tuple[str, str, float]]:
    return [
        (f"{best['op']}, {best['shape']}", name, ratio)
        for best, others in tables.shapes(run)
        for name, ratio in others.items()
    ]


def _bounded(run: Run) -> list[dict[str, Any]]:
    """Rows of the best backend of what memory bounds."""
    return [best for best, _ in tables.shapes(run) if not best["gflop_s"]]


def speedups(run: Run, path: Path) -> None:
    """How many times as fast the best backend is, on a logarithmic axis."""
    import matplotlib.pyplot as plt

    bars = _bars(run)
    figure, axis = plt.subplots(figsize=(9, 0.27 * len(bars) + 1), layout="constrained")
    names = list(dict.fromkeys(name for _, name, _ in bars))
    for y, (label, name, ratio) in enumerate(bars):
        axis.barh(y, ratio, color=f"C{names.index(name) % 10}")
        text = f" {tables.ratio(ratio)} x {name}"
        axis.annotate(text, (max(ratio, 1), y), va="center", fontsize=7)
        if y == 0 or bars[y - 1][0] != label:
            axis.annotate(label + "  ", (1, y), va="center", ha="right", fontsize=7)
    axis.set_xscale("log")
    axis.set_xlim(1, 4 * max(1.0, *(ratio for _, _, ratio in bars)))
    axis.set_ylim(len(bars) - 0.4, -0.6)  # the first on top
    axis.set_yticks([])
    axis.set_xlabel("times as fast")
    _save(figure, path)


def bandwidth(run: Run, path: Path) -> None:
    """Bandwidth against the bytes that must be moved, with the measured limits drawn in."""
    import matplotlib.pyplot as plt

    rows = _bounded(run)
    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for i, op in enumerate(dict.fromkeys(row["op"] for row in rows)):
        points = sorted(
            (row["gb_s"] * row["median_us"] / 1e3, row["gb_s"]) for row in rows if row["op"] == op
        )
        megabytes = [size for size, _ in points]
        marker = "os^Dv*"[i // 10 % 6]
        axis.plot(megabytes, [rate for _, rate in points], marker=marker, markersize=5, label=op)
    limits = {k: v for k, v in run["limits"].items() if k.endswith("gb_s")}
    for (name, value), style in zip(limits.items(), ("-", "--", ":", "-."), strict=False):
        label = f"{name.removesuffix('_gb_s')} limit, {value:.0f} GB/s"
        axis.axhline(value, color="tab:red", linestyle=style, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("MB that must be moved")
    axis.set_ylabel("GB/s")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def images(run: Run, path: Path) -> None:
    """Time of a whole image by trunk, head and decoder; bars of one model side by side."""
    import matplotlib.pyplot as plt

    rows = run["images"]
    figure, axis = plt.subplots(figsize=(9, 0.3 * len(rows) + 1.2), layout="constrained")
    colours = {"trunk": "tab:blue", "head": "tab:orange", "decoder": "tab:green"}
    labels = []
    for y, row in enumerate(rows):
        left = 0.0
        parts = row["parts_ms"]
        rest = {"trunk and head": row["ms"] - sum(parts.values())}
        shown = parts if "head" in parts else {**rest, **parts}
        for part, ms in sorted(shown.items(), key=lambda item: item[0] == "decoder"):
            axis.barh(y, ms, left=left, color=colours.get(part, "tab:gray"), label=part)
            left += ms
        bound = row.get("bound_ms", {}).get("whole")
        if bound:
            axis.plot([bound, bound], [y - 0.4, y + 0.4], color="tab:red", label="bound")
        axis.annotate(f" {tables.milliseconds(row['ms'])}", (left, y), va="center", fontsize=7)
        labels.append(f"{row['model']}, batch {row['batch']}, {row['path']}")
    axis.set_yticks(range(len(rows)), labels, fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 1.15 * max(row["ms"] for row in rows))
    axis.set_xlabel("ms an image")
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(handles.values(), handles.keys(), fontsize=7, loc="lower right")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """The same small file from the same results: text as text, no date."""
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "bitdance", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
