"""The ops on this CPU under pytest-benchmark: ``make bench``.

One thread, the backend that ``auto`` takes, every CPU shape. The runs are stored in
``.benchmarks``; ``--benchmark-compare`` holds a run against the one before. Figures for others to
read come from ``python -m benchmarks cpu``, which has the baselines in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks import timing
from benchmarks.shapes import Bench, Timing, all_benches

_CPU = torch.device("cpu")
_SHAPES = [
    pytest.param(case, shape, id=f"{case.name}, {shape.name}")
    for case in all_benches().values()
    for shape in case.timings
    if "cpu" in shape.devices
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("case", "shape"), _SHAPES)
def test_speed(case: Bench, shape: Timing, benchmark: Callable[..., Any]) -> None:
    call = shape.make(_CPU)
    function = timing.functions(case, call, ["auto"], backward=shape.backward)["auto"]
    extra: dict[str, Any] = getattr(benchmark, "extra_info")  # noqa: B009  (it has no stubs)
    extra |= {"bytes": shape.bytes, "flops": shape.flops}
    with torch.inference_mode():
        benchmark(function, call)
