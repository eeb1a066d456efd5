"""A part about some ops: each is held against its reference, and timed if it is right."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from benchmarks import cpu
from benchmarks.gpu import checks, timings
from benchmarks.gpu.worker import Context, Step
from benchmarks.shapes import Bench

_KINDS = ("reference", "repeated", "graph")


def steps(context: Context, part: str, ops: Sequence[str]) -> list[Step]:
    """A step per op that checks it, then one per op and shape that times it."""
    benches = [bench for bench in context.benches if bench.name in ops]
    right = [(_right(b.name), functools.partial(_check, context, b)) for b in benches]
    timed = [
        if_right(context, part, bench.name, name, function)
        for bench, name, function in timings.of(context, part, benches)
    ]
    return [*right, *timed]


def if_right(context: Context, part: str, op: str, name: str, function: Callable[[], None]) -> Step:
    """A step of `part` that runs unless its check of `op` found a wrong result, or failed."""

    def run() -> None:
        why = checks.wrong(context, lambda key: key == f"{part}: {_right(op)}")
        if why is None:
            function()
        else:
            context.add("not run", why, f"{part}: {name}")

    return name, run


def _right(op: str) -> str:
    return f"right, {op}"


def _check(context: Context, bench: Bench) -> None:
    """A record per backend, sample and kind of check, until one is wrong."""
    samples = list(bench.samples(context.device))
    if context.dry_run:
        samples = [next(call for call in samples if all(t.numel() for t in call.tensors()))]
    for call in samples:
        for backend, why_not in cpu.runnable(bench, call).items():
            if why_not is not None or (backend == "reference" and not context.dry_run):
                continue
            # In a dry run the part "checks" has the other kinds, of the same samples.
            for kind in _KINDS[:1] if context.dry_run else _KINDS:
                checks.record(context, bench, call, backend, kind, checks.KINDS[kind])
        if any(c["op"] == bench.name and c["wrong"] for c in context.result["checks"]):
            return
