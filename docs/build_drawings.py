"""Draws the pictures of the family pages into docs/plots: ``make docs``."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

from bitdance_kernels import pack_signs

matplotlib.use("svg")
from matplotlib import pyplot as plt

PLOTS = Path(__file__).with_name("plots")
INK, ONE, ZERO, READ, WRITE = "#1d2433", "#3b6fb6", "#dfe5ee", "#3b6fb6", "#d9822b"


def bits(out: Path) -> None:
    """Eight values and the byte that `pack_signs` makes of them."""
    values = torch.tensor([0.7, -1.2, 0.0, 2.1, -0.3, 0.4, -0.9, 1.5])
    byte = int(pack_signs(values))
    figure, axes = plt.subplots(figsize=(7, 1.9))
    for c, value in enumerate(values.tolist()):
        bit = byte >> c & 1
        axes.text(c + 0.5, 1.9, f"{value:+.1f}", ha="center", va="center", color=INK)
        axes.annotate("", (c + 0.5, 1.05), (c + 0.5, 1.65), arrowprops={"arrowstyle": "->"})
        axes.add_patch(plt.Rectangle((c + 0.03, 0), 0.94, 0.95, color=ONE if bit else ZERO))
        color = "white" if bit else INK
        axes.text(c + 0.5, 0.47, str(bit), ha="center", va="center", color=color, weight="bold")
        axes.text(c + 0.5, -0.3, f"bit {c}", ha="center", va="center", color=INK, size=8)
    axes.text(8.3, 0.47, f"= {byte}", va="center", color=INK, size=13)
    axes.text(8.3, 1.9, "x", va="center", color=INK, style="italic")
    axes.set(xlim=(0, 9.4), ylim=(-0.5, 2.3))
    _save(figure, axes, out)


def passes(out: Path, rows: dict[str, list[tuple[str, int, int]]]) -> None:
    """What each variant reads and writes, in tensors of the size of x."""
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.75 * len(rows)))
    for y, (label, kernels) in enumerate(rows.items()):
        x = 0.0
        for name, reads, writes in kernels:
            for count, color in ((reads, READ), (writes, WRITE)):
                for _ in range(count):
                    axes.add_patch(plt.Rectangle((x + 0.06, y), 0.88, 0.42, color=color))
                    x += 1
            middle = x - (reads + writes) / 2
            axes.text(middle, y + 0.58, name, ha="center", va="center", color=INK, size=7)
            x += 0.35
        axes.text(-0.4, y + 0.21, label, ha="right", va="center", color=INK, size=9)
    widest = max(sum(r + w + 0.35 for _, r, w in kernels) for kernels in rows.values())
    for x, color, name in ((0, READ, "read"), (4, WRITE, "write")):
        axes.add_patch(plt.Rectangle((x, -0.75), 0.6, 0.3, color=color))
        axes.text(x + 0.9, -0.6, name, va="center", color=INK, size=8)
    axes.set(xlim=(-6, widest + 0.5), ylim=(-0.9, len(rows)))
    axes.invert_yaxis()
    _save(figure, axes, out)


def chain(out: Path) -> None:
    """A branch of the head: launches one after another, and a chain of them that overlap."""
    figure, axes = plt.subplots(figsize=(8, 3.4))

    def bar(x: float, y: float, width: float, color: str, text: str) -> None:
        axes.add_patch(plt.Rectangle((x, y), width, 0.5, color=color))
        middle = x + width / 2
        axes.text(middle, y + 0.25, text, ha="center", va="center", color="white", size=6.5)

    for y, label in ((0, "library"), (1.2, "packed")):
        axes.text(-0.3, y + 0.25, label, ha="right", va="center", color=INK, size=9)
    for i, name in enumerate(("product", "swiglu", "product", "gate, sum and norm")):
        bar(3 * i, 0, 2.6, ONE, name)
    left = ("h", "stream, moments", "")
    for i, name in enumerate(("adaln_linear_swiglu", "linear_gated_residual", "next branch")):
        x, y = 3 * i, 1.2 + 0.9 * i
        bar(x, y, 1.4, WRITE, "fetch")
        bar(x + 1.4, y, 3, ONE, name)
        if left[i]:
            arrow = {"arrowstyle": "->"}
            axes.annotate("", (x + 4.4, y + 0.9), (x + 4.4, y + 0.5), arrowprops=arrow)
            axes.text(x + 4.6, y + 0.65, left[i], va="center", color=INK, size=7)
    for y, color, name in (
        (4.0, WRITE, "weights, scale and shift, which no kernel of the chain writes"),
        (4.45, ONE, "after the kernel before: norm, product, gate, sum"),
    ):
        axes.add_patch(plt.Rectangle((0, y), 0.5, 0.25, color=color))
        axes.text(0.7, y + 0.12, name, va="center", color=INK, size=8)
    axes.set(xlim=(-2, 12), ylim=(-0.1, 4.8))
    axes.invert_yaxis()
    _save(figure, axes, out)


def _save(figure: plt.Figure, axes: plt.Axes, out: Path) -> None:
    axes.set_axis_off()
    figure.savefig(out, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def build(folder: Path = PLOTS) -> None:
    """All drawings."""
    matplotlib.rcParams["svg.hashsalt"] = "bitdance"  # the same file every time
    folder.mkdir(parents=True, exist_ok=True)
    bits(folder / "bits.svg")
    passes(
        folder / "denoise_passes.svg",
        {
            "eager": [
                ("gate h", 2, 1),
                ("x +", 2, 1),
                ("layer norm", 1, 1),
                ("1 + scale", 1, 1),
                ("multiply", 2, 1),
                ("+ shift", 2, 1),
            ],
            "gated_residual_adaln": [("one pass", 5, 2)],
        },
    )
    passes(
        folder / "norm_passes.svg",
        {
            "eager": [
                ("to float32", 1, 1),
                ("statistics", 1, 0),
                ("normalize", 1, 1),
                ("sigmoid", 1, 1),
                ("multiply", 2, 1),
            ],
            "group_norm_silu": [("statistics", 1, 0), ("the rest", 1, 1)],
        },
    )
    chain(folder / "launch_chain.svg")


if __name__ == "__main__":
    build()
    print(f"wrote {PLOTS}")
