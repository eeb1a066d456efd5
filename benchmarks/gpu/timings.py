"""How fast the ops are on this card, L2-cold, against what users would call instead."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch

from benchmarks import cpu, timing
from benchmarks.gpu.worker import Context, Step
from benchmarks.shapes import Bench, Timing
from bitdance_kernels.testing import Call

# Compiling a baseline takes seconds: not done once less than this share of the time is left.
_SHARE_EAGER = 0.35
# What has no graph, is compiled already, or has nothing to fuse.
_NOT_COMPILED = ("numpy", "flex", "flash", "fill", "library")


def steps(context: Context) -> Sequence[Step]:
    """A step per op and shape."""
    return [(name, function) for _, name, function in of(context, "timings", context.benches)]


def of(
    context: Context, part: str, benches: Sequence[Bench]
) -> list[tuple[Bench, str, Callable[[], None]]]:
    """An op, name and function per op and shape, within the time of `part`.

    The first shapes of all ops come first, in case the time does not reach.
    """
    if context.dry_run:
        return [(case, case.name, functools.partial(_dry, context, case)) for case in benches]

    shapes = [[(c, s) for s in c.timings if "cuda" in s.devices] for c in benches]
    turns = [pair for turn in zip_longest(*shapes) for pair in turn if pair is not None]
    share = min(1.0, 0.2 * context.parts.get(part, 0.0) / max(len(turns), 1))
    return [
        (
            case, f"{case.name}, {shape.name}",
            functools.partial(_time, context, part, case, shape, share),
        )
        for case, shape in turns
    ]  # fmt: skip


def _time(context: Context, part: str, case: Bench, shape: Timing, seconds: float) -> None:
    call = shape.make(context.device)
    able = [name for name, why in cpu.runnable(case, call).items() if why is None]
    timed = dict(timing.functions(case, able, backward=shape.backward))
    if context.left(part) > _SHARE_EAGER * context.parts[part]:
        timed |= compiled(case, shape)
    else:
        note = "not compiled: the time was used up"
        context.add("not timed", note, f"{case.name}, {shape.name}: compiled baselines")
    with torch.inference_mode():
        memory = _peaks(timed, call)
        del call
        times, failed = timing.time_cuda(timed, shape, seconds)
    torch.compiler.reset()
    for name, why in failed.items():
        # A reference may wait for the card, which no graph can.
        target = "failed" if name in able and name != "reference" else "not timed"
        context.add(target, why, f"{case.name}, {shape.name}: {name}")
    for row in timing.rows(case, shape, times, able, "cuda"):
        context.add("rows", row | memory.get(row["name"], {}))


def _peaks(timed: timing.Functions, call: Call) -> dict[str, dict[str, float]]:
    """Memory that each function takes at its peak, results included; compiles what compiles."""
    peaks = {}
    for name, function in timed.items():
        try:
            function(call)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function(call)
            torch.cuda.synchronize()
        except Exception:  # `time_cuda` says why
            continue
        peaks[name] = {"peak_mb": (torch.cuda.max_memory_allocated() - before) / 1e6}
    return peaks


def compiled(case: Bench, shape: Timing) -> timing.Functions:
    """Every baseline under torch.compile, for exactly this shape."""
    fast = {
        f"{name}, compiled": torch.compile(function, dynamic=False)
        for name, function in case.baselines.items()
        if not any(word in name for word in _NOT_COMPILED)
    }
    return timing.of_calls(fast, backward=shape.backward)


def _dry(context: Context, case: Bench) -> None:
    """The code path on the smallest sample; not a measurement."""
    call = next(c for c in case.samples(context.device) if all(t.numel() for t in c.tensors()))
    able = [name for name, why in cpu.runnable(case, call).items() if why is None]
    shape = Timing(call.name, lambda _: call, bytes=1)
    with torch.inference_mode():
        timed = dict(timing.functions(case, able))
        timed.pop("flex", None)  # compiles for long
        ways = {name: functools.partial(function, call) for name, function in timed.items()}
        rows, failed = timing.compare(ways, 0.0, min_seconds=0.0)
    for name, why in failed.items():
        context.add("not timed", why, f"{case.name}, {shape.name}: {name}")
    common = {"op": case.name, "shape": shape.name, "device": "cpu", "gb_s": 0.0, "gflop_s": 0.0}
    for row in rows:
        kind = "backend" if row["name"] in able else "baseline"
        context.add("rows", {**common, **row, "kind": kind})
