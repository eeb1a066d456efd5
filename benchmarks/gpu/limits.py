"""What the card can do: the limits that results are held against, and the time between launches."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.worker import Context, Step

_WORKING_SETS_MB = (8, 16, 24, 32, 41, 50, 60)
_LAUNCHES = 200


def steps(context: Context) -> Sequence[Step]:
    """Bandwidth, matrix rate, L2, launches."""
    measures = {
        "clock": _clock,
        "copy": _copy,
        "matrix rate": _matrix_rate,
        "L2": _l2,
        "launch to launch": _launches,
    }
    return [(name, functools.partial(measure, context)) for name, measure in measures.items()]


def seconds_of(context: Context, function: Callable[[], object]) -> float:
    """Median seconds of a call within a graph of many; 1 on the CPU, unmeasured."""
    if context.dry_run:
        function()
        return 1.0
    from triton.testing import do_bench_cudagraph

    return do_bench_cudagraph(function, rep=20, return_mode="median") / 1e3


def _probe(context: Context, probe: str, setting: str, **figures: float | str) -> None:
    context.add("probes", {"probe": probe, "setting": setting, **figures})


def _clock(context: Context) -> None:
    """The highest clock of the multiprocessors, which bounds what they can issue."""
    if context.dry_run:
        return
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    try:
        done = subprocess.run([*query, "-i", index], capture_output=True, text=True, check=True)
        context.add("limits", float(done.stdout) / 1e3, "sm_clock_ghz")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        context.add("not run", f"nvidia-smi: {error}", "machine: clock")


def _copy(context: Context) -> None:
    """The faster of a copy node of a graph and of a kernel that copies."""
    x = torch.randn(2**10 if context.dry_run else 2**28, device=context.device)
    y = torch.empty_like(x)
    ways = (lambda: y.copy_(x)), (lambda: torch.mul(x, 1, out=y))
    seconds = min(seconds_of(context, way) for way in ways)
    context.add("limits", 2e-9 * x.nbytes / seconds, "copy_gb_s")


def _matrix_rate(context: Context) -> None:
    size = 64 if context.dry_run else 8192
    a, b = torch.randn(2, size, size, device=context.device).bfloat16()
    seconds = seconds_of(context, lambda: torch.mm(a, b))
    context.add("limits", 2 * size**3 / 1e12 / seconds, "bf16_tflop_s")


def _l2(context: Context) -> None:
    """Reading working sets again and again; the rate of the 32 MB set stands for the L2's."""
    from benchmarks.gpu import probes  # needs Triton

    block, programs = 4096, 4 * context.multiprocessors
    out = torch.empty(programs * block, device=context.device)
    for megabytes in _WORKING_SETS_MB[:1] if context.dry_run else _WORKING_SETS_MB:
        blocks = 3 * programs if context.dry_run else megabytes * 10**6 // (4 * block)
        x = torch.randn(blocks * block, device=context.device)
        repeats = 2 if context.dry_run else max(4, 2000 // megabytes)

        def read(x: Tensor = x, blocks: int = blocks, repeats: int = repeats) -> None:
            probes.read_kernel[(programs,)](x, out, blocks, repeats, BLOCK=block, num_warps=8)

        rate = repeats * blocks * block * 4 / 1e9 / seconds_of(context, read)
        _probe(context, "L2 read", f"{megabytes} MB", gb_s=rate)
        if megabytes == 32:
            context.add("limits", rate, "l2_gb_s")


def _launches(context: Context) -> None:
    """Time from kernel to kernel in a graph of small dependent ones."""
    from benchmarks.gpu import probes

    programs, block = context.multiprocessors, 128
    x = torch.zeros(programs * block, device=context.device)
    count = 2 if context.dry_run else _LAUNCHES
    ways: dict[str, dict[str, Any]] = {"plain": {"PDL": False}}
    if not context.dry_run:
        ways["PDL"] = {"PDL": True, "launch_pdl": True}
    for name, options in ways.items():

        def chain(options: dict[str, Any] = options) -> None:
            for _ in range(count):
                probes.chain_kernel[(programs,)](x, BLOCK=block, num_warps=4, **options)

        try:
            figures: dict[str, Any] = {"us": 1e6 * seconds_of(context, chain) / count}
        except Exception as error:
            figures = {"note": f"{type(error).__name__}: {error}"[:200]}
        _probe(context, "launch to launch", name, **figures)
