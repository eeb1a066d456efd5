"""Plots of a result: bandwidth against size, speed-ups, whole images and their parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import bounds, tables

Run = dict[str, Any]


def draw(run: Run, stem: Path) -> None:
    """Draw what there is to draw in `run`, such as ``STEM.images.svg``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for suffix, plot in PLOTS.items():
        figure = plot(run)
        if figure is not None:
            # The same small file from the same results: text as text, no date.
            with matplotlib.rc_context({"svg.hashsalt": "bitdance", "svg.fonttype": "none"}):
                figure.savefig(stem.with_name(stem.name + suffix), metadata={"Date": None})
            plt.close(figure)


def _axis(height: float) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(9, height), layout="constrained")


def _legend(axis: Any, size: int) -> None:
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(handles.values(), handles.keys(), fontsize=size, loc="lower right")


def speedups(run: Run) -> Any:
    """How many times as fast as its fastest rival the best backend is, on a logarithmic axis."""
    bars = [
        (f"{best['op']}, {best['shape']}", *min(rivals, key=lambda pair: pair[1]))
        for best, others in tables.shapes(run)
        if (rivals := [(k, v[0]) for k, v in others.items() if k != "reference"])
    ]
    if not bars:
        return None
    figure, axis = _axis(0.27 * len(bars) + 1)
    names = list(dict.fromkeys(name for _, name, _ in bars))
    for y, (_, name, ratio) in enumerate(bars):
        axis.barh(y, ratio, color=f"C{names.index(name) % 10}")
        text = f" {tables.ratio(ratio)} x {name}"
        axis.annotate(text, (max(ratio, 1), y), va="center", fontsize=7)
    axis.axvline(1, color="black", linewidth=0.5)
    axis.set(xscale="log", xlabel="times as fast as the fastest rival")
    axis.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=7)
    ratios = [ratio for _, _, ratio in bars]
    axis.set_xlim(0.8 * min(1, *ratios), 4 * max(1, *ratios))
    axis.set_ylim(len(bars) - 0.4, -0.6)  # the first on top
    return figure


def bandwidth(run: Run) -> Any:
    """Bandwidth of what memory bounds against the bytes that must be moved, and the limits."""
    rows = [best for best, _ in tables.shapes(run) if not best["gflop_s"]]
    if not rows:
        return None
    figure, axis = _axis(5.5)
    for i, op in enumerate(dict.fromkeys(row["op"] for row in rows)):
        of_op = [row for row in rows if row["op"] == op]
        points = sorted((r["gb_s"] * r["median_us"] / 1e3, r["gb_s"]) for r in of_op)
        axis.plot(*zip(*points, strict=True), marker="os^Dv*"[i // 10 % 6], markersize=5, label=op)
    limits = {k: v for k, v in run["limits"].items() if k.endswith("gb_s")}
    for (name, value), style in zip(limits.items(), ("-", "--", ":", "-."), strict=False):
        label = f"{name.removesuffix('_gb_s')} limit, {value:.0f} GB/s"
        axis.axhline(value, color="tab:red", linestyle=style, label=label)
    axis.set(xscale="log", yscale="log", xlabel="MB that must be moved", ylabel="GB/s")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def images(run: Run) -> Any:
    """Time of a whole image by trunk, head and decoder; bars of one model side by side."""
    rows = run.get("images")
    if not rows:
        return None
    figure, axis = _axis(0.3 * len(rows) + 1.2)
    colors = {"trunk": "tab:blue", "head": "tab:orange", "decoder": "tab:green"}
    for y, row in enumerate(rows):
        left, parts = 0.0, row["parts_ms"]
        rest = {"trunk and head": row["ms"] - sum(parts.values())}
        shown = parts if "head" in parts else {**rest, **parts}
        for part, ms in sorted(shown.items(), key=lambda item: item[0] == "decoder"):
            axis.barh(y, ms, left=left, color=colors.get(part, "tab:gray"), label=part)
            left += ms
        found = bounds.of_image(row["model"], row["batch"], run)
        if found:
            bound = found["whole"]
            axis.plot([bound, bound], [y - 0.4, y + 0.4], color="tab:red", label="bound")
        axis.annotate(f" {tables.milliseconds(row['ms'])}", (left, y), va="center", fontsize=7)
    labels = [f"{row['model']}, batch {row['batch']}, {row['path']}" for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set(xlim=(0, 1.15 * max(row["ms"] for row in rows)), xlabel="ms an image")
    _legend(axis, 7)
    return figure


def summary(run: Run) -> Any:
    """Time of a whole image beside the published sampler's, on a logarithmic axis."""
    pairs = [(fast, other) for fast, other in tables.first_images(run) if other]
    if not pairs:
        return None
    figure, axis = _axis(0.55 * len(pairs) + 0.9)
    for y, rows in enumerate(pairs):
        for row, color, side in zip(rows, ("tab:orange", "#b9c2d0"), (-0.2, 0.2), strict=True):
            axis.barh(y + side, row["ms"], 0.38, color=color, label=row["path"])
            text = f" {tables.milliseconds(row['ms'])}"
            axis.annotate(text, (row["ms"], y + side), va="center", fontsize=8)
    labels = [f"{row['model']}, batch {row['batch']}" for row, _ in pairs]
    axis.set_yticks(range(len(pairs)), labels)
    times = [row["ms"] for rows in pairs for row in rows]  # texts outside of the axis are left out
    axis.set(xscale="log", xlabel="ms an image", xlim=(min(1, *times), 2 * max(times)))
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    _legend(axis, 8)
    return figure


PLOTS: dict[str, Callable[[Run], Any]] = {
    ".svg": speedups,
    ".bandwidth.svg": bandwidth,
    ".images.svg": images,
    ".summary.svg": summary,
}
