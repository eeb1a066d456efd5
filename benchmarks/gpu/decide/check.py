"""Each new kernel once on small shapes, against the reference, before anything is timed."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from benchmarks import cpu
from benchmarks.gpu import checks
from benchmarks.gpu.decide import calls
from benchmarks.gpu.worker import Context, Step
from benchmarks.shapes import Bench

NEW = (
    "adaln_linear",
    "adaln_linear_swiglu",
    "block_decode_attention",
    "denoise_patch",
    "denoise_step_linear",
    "linear",
    "linear_gated_residual",
    "linear_swiglu",
    "rms_norm_linear",
    "rms_norm_linear_swiglu",
    "rms_norm_qkv",
)
"""Ops whose backend in CUDA C++ is compiled for sm_90 and later."""
_KINDS = ("reference", "repeated", "graph")


def steps(context: Context) -> Sequence[Step]:
    """A step per op; none depends on another."""
    return [
        (f"right, {bench.name}", functools.partial(_check, context, bench))
        for bench in context.benches
        if bench.name in NEW
    ]


def _check(context: Context, bench: Bench) -> None:
    """A record per sample that the backend takes, until one is wrong."""
    backend = "reference" if context.dry_run else "cuda"
    samples = list(bench.samples(context.device))
    if context.dry_run:
        sizes = {sum(t.numel() for t in call.tensors()): call for call in samples}
        samples = [sizes[min(size for size in sizes if size)]]
    else:
        samples += calls.of_op(bench.name, context.device)
    taken = [c for c in samples if cpu.runnable(bench, c, [backend])[backend] is None]
    if not taken:
        raise AssertionError(f"{bench.name}: the {backend} backend takes no sample")
    for call in taken:
        for kind in _KINDS:
            checks.record(context, bench, call, backend, kind, checks.KINDS[kind])
            if checks.wrong(context, lambda key: key == context.result["doing"]) is not None:
                return
