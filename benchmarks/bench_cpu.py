"""The ops on this CPU under pytest-benchmark: ``make bench``.

One thread, the backend that ``auto`` takes, every CPU shape. The runs are stored in
``.benchmarks``; ``--benchmark-compare`` holds a run against the one before. Figures for others to
read come from ``python -m benchmarks cpu``, which has the baselines in the same rounds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import timing
from benchmarks.cpu import CPU
from benchmarks.shapes import Bench, Timing, all_benches
from bitdance_kernels.testing import cpu_threads

_SHAPES = [
    pytest.param(bench, shape, id=f"{bench.name}, {shape.name}")
    for bench in all_benches().values()
    for shape in bench.timings
    if "cpu" in shape.devices
]


@pytest.mark.parametrize(("bench", "shape"), _SHAPES)
def test_speed(bench: Bench, shape: Timing, benchmark: Any) -> None:
    call = shape.make(CPU)
    function = timing.functions(bench, ["auto"], backward=shape.backward)["auto"]
    benchmark.extra_info |= {"bytes": shape.bytes, "flops": shape.flops}
    with cpu_threads(1), torch.inference_mode():
        benchmark(function, call)
