"""The figures that this library sets out to reach, each against what was measured.

A target is a number, a way to find what was measured in a result, and which side of the number is
good. Where several shapes belong to a target the worst of them counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks import tables

Run = dict[str, Any]
Measure = Callable[[Run], list[float]]


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        device: "cpu" or "cuda".
        what: the op and shapes.
        number: to be reached.
        unit: "x", "%", "us" or "ms"; of the last two less is better.
        versus: what a ratio or share is taken of.
        measure: values in a result, none if it has not measured them.
    """

    device: str
    what: str
    number: float
    unit: str
    versus: str
    measure: Measure

    @property
    def goal(self) -> str:
        """For people."""
        sign = "at most" if self._less else "at least"
        return f"{sign} {_figure(self.number, self.unit)}{' ' * bool(self.versus)}{self.versus}"

    def worst(self, run: Run) -> float | None:
        """What counts of a result; None where it has nothing."""
        values = self.measure(run)
        return (max if self._less else min)(values) if values else None

    def reached(self, value: float) -> bool:
        """Whether `value` is on the good side."""
        return value <= self.number if self._less else value >= self.number

    @property
    def _less(self) -> bool:
        return self.unit in ("us", "ms") or self.versus.endswith("alone")


def table(runs: dict[str, Run]) -> str:
    """Every target with the figure measured, and whether it is reached."""
    lines = ["| device | what | target | measured | |", "|---|---|---|---:|---|"]
    for target in TARGETS:
        found = _latest(target, runs)
        state = "not measured" if found is None else "missed"
        if found is not None and target.reached(found[1]):
            state = "**reached**"
        figure = "" if found is None else _figure(found[1], target.unit)
        device = "GPU" if target.device == "cuda" else "CPU"
        lines.append(f"| {device} | {target.what} | {target.goal} | {figure} | {state} |")
    return "\n".join([*lines, ""])


def _latest(target: Target, runs: dict[str, Run]) -> tuple[str, float] | None:
    """The newest result that has measured the target, and its figure."""
    of_device = {
        name: run
        for name, run in runs.items()
        if run["machine"]["device"] == target.device and not run.get("dry_run")
    }
    newest = sorted(of_device, key=lambda name: of_device[name]["machine"]["date"], reverse=True)
    for name in newest:
        value = target.worst(of_device[name])
        if value is not None:
            return name, value
    return None


def _figure(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.0f}%"
    if unit == "x":
        return f"{tables.ratio(value)}x"
    return f"{tables.milliseconds(value)} {unit}"


def _best(run: Run, op: str, shape: str) -> Iterable[tuple[dict[str, Any], dict[str, float]]]:
    """Best backend and ratios of the others, for shapes in which `shape` is found."""
    for best, others in tables.shapes(run):
        if best["op"] == op and re.search(shape, best["shape"]):
            yield best, others


def share(op: str, shape: str, limit: str) -> Measure:
    """Bandwidth of the best backend as a share of a limit of the same run."""

    def measure(run: Run) -> list[float]:
        if limit not in run["limits"]:
            return []
        return [best["gb_s"] / run["limits"][limit] for best, _ in _best(run, op, shape)]

    return measure


def speedup(op: str, shape: str, baseline: str) -> Measure:
    """How many times as fast the best backend is."""

    def measure(run: Run) -> list[float]:
        return [others[baseline] for _, others in _best(run, op, shape) if baseline in others]

    return measure


def microseconds(op: str, shape: str) -> Measure:
    """Of the best backend."""
    return lambda run: [best["median_us"] for best, _ in _best(run, op, shape)]


def matrix_share(op: str, shape: str) -> Measure:
    """Arithmetic of the best backend as a share of the rate of a large product."""

    def measure(run: Run) -> list[float]:
        rate = run["limits"].get("bf16_tflop_s")
        rows = [best for best, _ in _best(run, op, shape)]
        return [row["gflop_s"] / 1e3 / rate for row in rows] if rate else []

    return measure


def memory(op: str, shape: str, baseline: str) -> Measure:
    """Peak memory of a baseline over that of the best backend."""

    def measure(run: Run) -> list[float]:
        ratios = []
        for best, _ in _best(run, op, shape):
            for row in run["rows"]:
                same = (row["op"], row["shape"], row["name"]) == (op, best["shape"], baseline)
                if same and best.get("peak_mb") and row.get("peak_mb"):
                    ratios.append(row["peak_mb"] / best["peak_mb"])
        return ratios

    return measure


def image_ratio(model: str, batches: tuple[int, ...], path: str, *, over: bool = False) -> Measure:
    """Of each batch the time of `path` over that of the default; with `over` the reverse."""

    def measure(run: Run) -> list[float]:
        ratios = []
        for batch in batches:
            fast, other = (tables.image(run, model, batch, name) for name in ("fast", path))
            if fast and other:
                ratio = other["ms"] / fast["ms"]
                ratios.append(1 / ratio if over else ratio)
        return ratios

    return measure


def decoder_ratio(model: str, batches: tuple[int, ...]) -> Measure:
    """Of each batch the time of the published decoder over that of the default."""

    def measure(run: Run) -> list[float]:
        ratios = []
        for batch in batches:
            rows = (tables.image(run, model, batch, name) for name in ("fast", "published"))
            fast, other = ((row or {}).get("parts_ms", {}).get("decoder") for row in rows)
            if fast and other:
                ratios.append(other / fast)
        return ratios

    return measure


def image_time(model: str, *batches: int) -> Measure:
    """Milliseconds an image."""

    def measure(run: Run) -> list[float]:
        found = (tables.image(run, model, batch, "fast") for batch in batches)
        return [row["ms"] for row in found if row]

    return measure


def model_figure(name: str, figure: str) -> Measure:
    """A figure of a program of ``benchmarks.model``."""

    def measure(run: Run) -> list[float]:
        content = run.get("model", {}).get(name, {})
        return [content[figure]] if figure in content else []

    return measure


def _cpu() -> Iterable[Target]:
    large = r"^16\.8 M float32$"
    for op, limit in (("pack_signs", "read"), ("unpack_signs", "write")):
        what = f"{op}, 16.8 M float32"
        versus = f"of the bandwidth ({limit})"
        yield Target("cpu", what, 0.8, "%", versus, share(op, large, f"{limit}_gb_s"))
        yield Target("cpu", what, 1.7, "x", "numpy", speedup(op, large, "numpy"))
        yield Target("cpu", what, 30, "x", "a torch expression", speedup(op, large, "torch"))
    yield Target(
        "cpu", "unpack_signs, 4.2 M float32", 0.8, "%", "of the bandwidth (write)",
        share("unpack_signs", r"^4\.2 M float32$", "write_gb_s"),
    )  # fmt: skip
    name = "hamming_distance"
    yield Target("cpu", name, 10, "x", "a float product", speedup(name, "", "float product"))
    versus = "the N x 2^d formula"
    name = "lfq_entropy"
    yield Target("cpu", name, 7, "x", versus, speedup(name, "", "N x 2^d"))
    products = image_ratio("fashion", (1, 8), "products alone", over=True)
    yield Target("cpu", "whole images, bundled model", 1.15, "x", "the products alone", products)
    head = model_figure("head_sampling", "runner / products")
    yield Target("cpu", "head of B-16x, 8 images", 1.15, "x", "the products alone", head)
    for what in ("fashion, 1 image", "fashion, 8 images", "d16c32, 1 image"):
        decoder = model_figure("decode", f"{what}, decoder / convolutions")
        yield Target("cpu", f"decoding, {what}", 1.15, "x", "the convolutions alone", decoder)


def _gpu() -> Iterable[Target]:
    copy = "of the copy bandwidth"
    gigabyte = {
        "pack_signs": "268 M|537 M",
        "unpack_signs": "268 M|537 M",
        "flip_bits": "",
        "flip_signs": "",
        "bit_counts": "33554432",
    }
    for op, shape in gigabyte.items():
        yield Target("cuda", f"{op}, 1 GB", 0.85, "%", copy, share(op, shape, "copy_gb_s"))
    rows = ("adaln_norm", "gated_residual", "gated_residual_adaln", "swiglu")
    for op in rows:
        wide = r"^\[(8192|12288),"
        yield Target("cuda", f"{op}, large M", 0.85, "%", copy, share(op, wide, "copy_gb_s"))
        faster = speedup(op, wide, "torch, compiled")
        yield Target("cuda", f"{op}, large M", 1.0, "x", "torch.compile", faster)
        small = microseconds(op, r"^\[32,.*bfloat16")
        yield Target("cuda", f"{op}, 32 rows", 2.5, "us", "in a graph", small)
    op, wide = "denoise_step", "33.5 M"
    yield Target("cuda", f"{op}, large M", 0.85, "%", copy, share(op, wide, "copy_gb_s"))
    faster = speedup(op, wide, "torch, compiled")
    yield Target("cuda", f"{op}, large M", 1.0, "x", "torch.compile", faster)
    yield Target("cuda", f"{op}, batch 1", 2.5, "us", "in a graph", microseconds(op, "batch 1 "))
    op = "patch_attention"
    yield Target("cuda", op, 3, "x", "the eight launches", speedup(op, "", "eight launches"))
    op, shape, formula = "lfq_entropy", "16384 tokens, 8 bits", "N x 2^d"
    what = f"{op}, {shape}, with backward"
    yield Target("cuda", what, 10, "x", "the N x 2^d formula", speedup(op, shape, formula))
    less = memory(op, shape, formula)
    yield Target("cuda", what, 30, "x", "less memory than the formula", less)
    op = "block_causal_attention"
    rate = "of the rate of a large product"
    forward, backward = "^(?!.*backward).*bfloat16", "backward.*bfloat16|bfloat16.*backward"
    yield Target("cuda", f"{op}, forward", 0.5, "%", rate, matrix_share(op, forward))
    yield Target("cuda", f"{op}, with backward", 0.4, "%", rate, matrix_share(op, backward))
    yield Target("cuda", op, 1.1, "x", "FlexAttention", speedup(op, "bfloat16", "flex"))
    yield Target("cuda", op, 2, "x", "SDPA, dense mask", speedup(op, "bfloat16", "sdpa dense mask"))
    op = "block_decode_attention"
    many = r"ImageNet.*(64|384) images"
    what = f"{op}, batch 64 and 384"
    yield Target("cuda", what, 0.75, "%", copy, share(op, many, "copy_gb_s"))
    one = microseconds(op, r"ImageNet.* 1 image, bfloat16")
    yield Target("cuda", f"{op}, batch 1", 5, "us", "", one)
    op = "group_norm_silu"
    yield Target("cuda", f"{op}, 16 images", 0.8, "%", copy, share(op, r"^\[16,", "copy_gb_s"))
    what, decoder = "decoder of B-16x, batch 64 and 384", decoder_ratio("B-16x", (64, 384))
    yield Target("cuda", what, 2, "x", "the published one, autocast", decoder)
    for model, ms in (("B-16x", 42), ("B-1x", 336)):
        published = "the published path"
        what = f"whole image, {model}, batch 1"
        yield Target("cuda", what, 10, "x", published, image_ratio(model, (1,), "published"))
        yield Target("cuda", what, ms, "ms", "", image_time(model, 1))
        what = f"whole image, {model}, batch 64 and 384"
        ratio = image_ratio(model, (64, 384), "published")
        yield Target("cuda", what, 2.5, "x", published, ratio)
        yield Target("cuda", what, 7, "ms", "an image", image_time(model, 64, 384))


TARGETS: tuple[Target, ...] = (*_cpu(), *_gpu())
