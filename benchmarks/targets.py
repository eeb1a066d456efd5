"""The figures that this library sets out to reach, each against what was measured.

A target is a number, a way to find what was measured in a result, and which side of the number is
good. Where several shapes belong to a target the worst of them counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import tables

Run = dict[str, Any]


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
    measure: Callable[[Run], list[float]]

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


def table(runs: Mapping[str, Run]) -> str:
    """Every target with the figure measured, and whether it is reached."""
    rows = []
    for target in TARGETS:
        value = _latest(target, runs)
        state = "not measured"
        if value is not None:
            state = "**reached**" if target.reached(value) else "missed"
        figure = "" if value is None else _figure(value, target.unit)
        device = "GPU" if target.device == "cuda" else "CPU"
        rows.append((device, target.what, target.goal, figure, state))
    return tables.markdown({"device": "", "what": "", "target": "", "measured": ">", "": ""}, rows)


def _latest(target: Target, runs: Mapping[str, Run]) -> float | None:
    """The figure of the newest result that has measured the target."""
    device = [r for r in runs.values() if r["machine"]["device"] == target.device]
    newest = sorted(device, key=lambda run: run["machine"]["date"], reverse=True)
    values = (target.worst(run) for run in newest if not run.get("dry_run"))
    return next((value for value in values if value is not None), None)


def _figure(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.0f}%"
    return f"{tables.ratio(value)}x" if unit == "x" else f"{tables.milliseconds(value)} {unit}"


def _best(run: Run, op: str, shape: str) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """Best backend and ratios of the others, for shapes in which `shape` is found."""
    for best, others in tables.shapes(run):
        if best["op"] == op and re.search(shape, best["shape"]):
            yield best, others


def share(op: str, shape: str, limit: str, run: Run) -> list[float]:
    """Bandwidth of the best backend as a share of a limit of the same run."""
    of = run["limits"].get(limit)
    return [best["gb_s"] / of for best, _ in _best(run, op, shape)] if of else []


def speedup(op: str, shape: str, baseline: str, run: Run) -> list[float]:
    """How many times as fast the best backend is."""
    return [others[baseline] for _, others in _best(run, op, shape) if baseline in others]


def microseconds(op: str, shape: str, run: Run) -> list[float]:
    """Of the best backend."""
    return [best["median_us"] for best, _ in _best(run, op, shape)]


def matrix_share(op: str, shape: str, run: Run) -> list[float]:
    """Arithmetic of the best backend as a share of the rate of a large product."""
    rate = run["limits"].get("bf16_tflop_s")
    return [best["gflop_s"] / 1e3 / rate for best, _ in _best(run, op, shape)] if rate else []


def memory(op: str, shape: str, baseline: str, run: Run) -> list[float]:
    """Peak memory of a baseline over that of the best backend."""
    ratios = []
    for best, _ in _best(run, op, shape):
        for row in run["rows"]:
            same = (row["op"], row["shape"], row["name"]) == (op, best["shape"], baseline)
            if same and best.get("peak_mb") and row.get("peak_mb"):
                ratios.append(row["peak_mb"] / best["peak_mb"])
    return ratios


def image_ratio(
    model: str, batches: tuple[int, ...], path: str, part: str | None, run: Run
) -> list[float]:
    """Of each batch the time of `path` over that of the default, of all or of a part."""
    ratios = []
    for batch in batches:
        rows = [tables.image(run, model, batch, name) or {} for name in ("fast", path)]
        fast, other = (r.get("parts_ms", {}).get(part) if part else r.get("ms") for r in rows)
        if fast and other:
            ratios.append(other / fast)
    return ratios


def over_products(model: str, batches: tuple[int, ...], run: Run) -> list[float]:
    """Time of an image over that of its products alone."""
    return [1 / ratio for ratio in image_ratio(model, batches, "products alone", None, run)]


def image_time(model: str, batches: tuple[int, ...], run: Run) -> list[float]:
    """Milliseconds an image."""
    rows = (tables.image(run, model, batch, "fast") for batch in batches)
    return [row["ms"] for row in rows if row]


def model_figure(name: str, figure: str, run: Run) -> list[float]:
    """A figure of a program of ``benchmarks.model``."""
    content = run.get("model", {}).get(name, {})
    return [content[figure]] if figure in content else []


def _cpu() -> Iterator[Target]:
    target = partial(Target, "cpu")
    large = r"^16\.8 M float32$"
    for op, limit in (("pack_signs", "read"), ("unpack_signs", "write")):
        what = f"{op}, 16.8 M float32"
        bandwidth = f"of the bandwidth ({limit})"
        yield target(what, 0.8, "%", bandwidth, partial(share, op, large, f"{limit}_gb_s"))
        yield target(what, 1.7, "x", "numpy", partial(speedup, op, large, "numpy"))
        yield target(what, 30, "x", "a torch expression", partial(speedup, op, large, "torch"))
    smaller = partial(share, op, r"^4\.2 M float32$", "write_gb_s")
    yield target("unpack_signs, 4.2 M float32", 0.8, "%", bandwidth, smaller)
    for op, number, versus, baseline in (
        ("hamming_distance", 10, "a float product", "float product"),
        ("lfq_entropy", 7, "the N x 2^d formula", "N x 2^d"),
    ):
        yield target(op, number, "x", versus, partial(speedup, op, "", baseline))
    products, convolutions = "the products alone", "the convolutions alone"
    whole = partial(over_products, "fashion", (1, 8))
    yield target("whole images, bundled model", 1.15, "x", products, whole)
    head = partial(model_figure, "head_sampling", "runner / products")
    yield target("head of B-16x, 8 images", 1.15, "x", products, head)
    for what in ("fashion, 1 image", "fashion, 8 images", "d16c32, 1 image"):
        decoder = partial(model_figure, "decode", f"{what}, decoder / convolutions")
        yield target(f"decoding, {what}", 1.15, "x", convolutions, decoder)


def _gpu() -> Iterator[Target]:
    target = partial(Target, "cuda")
    copy, eager = "of the copy bandwidth", "torch, compiled"
    for op, shape in {
        "pack_signs": "268 M|537 M", "unpack_signs": "268 M|537 M", "flip_bits": "",
        "flip_signs": "", "bit_counts": "33554432",
    }.items():  # fmt: skip
        yield target(f"{op}, 1 GB", 0.85, "%", copy, partial(share, op, shape, "copy_gb_s"))
    wide = r"^\[(8192|12288),"
    for op, large, what, small in (
        ("adaln_norm", wide, "32 rows", r"^\[32,.*bfloat16"),
        ("gated_residual", wide, "32 rows", r"^\[32,.*bfloat16"),
        ("gated_residual_adaln", wide, "32 rows", r"^\[32,.*bfloat16"),
        ("swiglu", wide, "32 rows", r"^\[32,.*bfloat16"),
        ("denoise_step", "33.5 M", "batch 1", "batch 1 "),
    ):
        rows = f"{op}, large M"
        yield target(rows, 0.85, "%", copy, partial(share, op, large, "copy_gb_s"))
        yield target(rows, 1.0, "x", "torch.compile", partial(speedup, op, large, eager))
        yield target(f"{op}, {what}", 2.5, "us", "in a graph", partial(microseconds, op, small))
    op, launches = "patch_attention", "eight launches"
    yield target(op, 3, "x", f"the {launches}", partial(speedup, op, "", launches))
    op, shape, formula = "lfq_entropy", "16384 tokens, 8 bits", "N x 2^d"
    what = f"{op}, {shape}, with backward"
    yield target(what, 10, "x", f"the {formula} formula", partial(speedup, op, shape, formula))
    less = partial(memory, op, shape, formula)
    yield target(what, 30, "x", "less memory than the formula", less)
    op, rate = "block_causal_attention", "of the rate of a large product"
    forward = partial(matrix_share, op, "^(?!.*backward).*bfloat16")
    backward = partial(matrix_share, op, "backward.*bfloat16|bfloat16.*backward")
    yield target(f"{op}, forward", 0.5, "%", rate, forward)
    yield target(f"{op}, with backward", 0.4, "%", rate, backward)
    yield target(op, 1.1, "x", "FlexAttention", partial(speedup, op, "bfloat16", "flex"))
    dense = partial(speedup, op, "bfloat16", "sdpa dense mask")
    yield target(op, 2, "x", "SDPA, dense mask", dense)
    op = "block_decode_attention"
    many = partial(share, op, r"ImageNet.*(64|384) images", "copy_gb_s")
    yield target(f"{op}, batch 64 and 384", 0.75, "%", copy, many)
    one = partial(microseconds, op, r"ImageNet.* 1 image, bfloat16")
    yield target(f"{op}, batch 1", 5, "us", "", one)
    op = "group_norm_silu"
    yield target(f"{op}, 16 images", 0.8, "%", copy, partial(share, op, r"^\[16,", "copy_gb_s"))
    decoder = partial(image_ratio, "B-16x", (64, 384), "published", "decoder")
    what = "decoder of B-16x, batch 64 and 384"
    yield target(what, 2, "x", "the published one, autocast", decoder)
    for model, ms in (("B-16x", 42), ("B-1x", 336)):
        for batches, which, speed, time, unit in (
            ((1,), "batch 1", 10, ms, ""), ((64, 384), "batch 64 and 384", 2.5, 7, "an image"),
        ):  # fmt: skip
            what = f"whole image, {model}, {which}"
            ratio = partial(image_ratio, model, batches, "published", None)
            yield target(what, speed, "x", "the published path", ratio)
            yield target(what, time, "ms", unit, partial(image_time, model, batches))


TARGETS: tuple[Target, ...] = (*_cpu(), *_gpu())
