"""Timing: interleaved rounds on the CPU, CUDA graphs over rotating inputs on a card."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from benchmarks.shapes import Bench, Timing
from bitdance_kernels.testing import Call

Functions = Mapping[str, Callable[[Call], Any]]
Seconds = dict[str, list[float]]

_LEAST_ROUNDS = 5
# A measurement is at least this long, so that the clock and the call of a lambda do not matter.
_LEAST_SECONDS = 2e-3
# Of a graph's replay: three rounds are enough then.
_SLOW = 0.05


def functions(
    case: Bench, call: Call, backends: Sequence[str], *, backward: bool = False
) -> Functions:
    """What is timed against each other: backends of the op, and the baselines of its case."""

    def backend(name: str) -> Callable[[Call], Any]:
        return lambda call: case.op(*call.args, **call.kwargs, backend=name)

    def baseline(function: Callable[..., Any]) -> Callable[[Call], Any]:
        return lambda call: function(*call.args, **call.kwargs)

    timed: dict[str, Callable[[Call], Any]] = {name: backend(name) for name in backends}
    timed |= {name: baseline(function) for name, function in case.baselines.items()}
    return {name: with_backward(f) for name, f in timed.items()} if backward else timed


def with_backward(function: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """`function`, and the gradients of all floating-point arguments."""

    def timed(call: Call) -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            call = call.map(lambda t: t.detach().requires_grad_(t.is_floating_point()))
            leaves = [t for t in call.tensors() if t.requires_grad]
            results = pytree.tree_leaves(function(call))
            outputs = [t for t in results if isinstance(t, torch.Tensor) and t.requires_grad]
            return torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs])

    return timed


def time_cpu(
    timed: Functions, call: Call, seconds: float, *, least_seconds: float = _LEAST_SECONDS
) -> tuple[Seconds, dict[str, str]]:
    """Seconds per call of each function, one value a round, and for each that failed the reason.

    The functions take turns, so that a change of the machine's speed meets all of them alike. Large
    inputs come from memory each time; small ones are warm. A function's turn repeats it until
    `least_seconds` have passed.
    """
    repeats: dict[str, int] = {}
    failed: dict[str, str] = {}
    for name, function in timed.items():
        try:
            repeats[name] = _repeats(function, call, least_seconds)
        except Exception as error:  # a baseline may not take this dtype
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    times: Seconds = {name: [] for name in repeats}
    start = time.perf_counter()
    while True:
        for name in repeats:
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                timed[name](call)
            times[name].append((time.perf_counter() - begin) / repeats[name])
        rounds = len(next(iter(times.values())))
        if rounds >= _LEAST_ROUNDS and time.perf_counter() - start > seconds:
            return times, failed


def _repeats(function: Callable[[Call], Any], call: Call, least_seconds: float) -> int:
    function(call)  # first calls load modules and allocate
    begin = time.perf_counter()
    function(call)
    once = max(time.perf_counter() - begin, 1e-7)
    return max(1, round(least_seconds / once))


def time_cuda(timed: Functions, timing: Timing, seconds: float) -> tuple[Seconds, dict[str, str]]:
    """Seconds per call of each function, L2-cold, and for each that failed the reason.

    Every function is captured into a graph that calls it on one input set after the other; the sets
    together are more than twice the L2 cache, so each call finds its inputs in device memory.
    """
    device = torch.device("cuda")
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    sets = min(64, max(2, -(-2 * cache // max(timing.bytes, 1))))
    with torch.inference_mode(False):  # gradients may be asked for
        calls = [timing.make(device) for _ in range(sets)]
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    failed: dict[str, str] = {}
    for name, function in timed.items():
        try:
            graphs[name] = _capture(function, calls)
        except Exception as error:  # a baseline may not run on a card, or not in a graph
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            torch.cuda.synchronize()
    times: Seconds = {name: [] for name in graphs}
    start, rounds = time.perf_counter(), 0
    while graphs:
        for name, graph in graphs.items():
            if len(times[name]) >= 3 and sets * times[name][-1] > _SLOW:
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3 / sets)
        rounds += 1
        if rounds >= 3 * _LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
    return times, failed


def _capture(function: Callable[[Call], Any], calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles and loads outside the capture
        for call in calls[:2]:
            function(call)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            function(call)
    return graph


def rows(
    case: Bench, timing: Timing, times: Seconds, backends: Sequence[str], device: str
) -> list[dict[str, Any]]:
    """One row per function: median, least and quartiles, rates by what must be moved and done."""
    table = []
    for name, values in times.items():
        median = statistics.median(values)
        table.append(
            {
                "op": case.name,
                "shape": timing.name,
                "name": name,
                "kind": "backend" if name in backends else "baseline",
                "device": device,
                **spread(values),
                "gb_s": timing.bytes / median / 1e9,
                "gflop_s": timing.flops / median / 1e9,
            }
        )
    return table


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and quartiles of rounds, in microseconds, and how many rounds there were."""
    low, median, high = (
        statistics.quantiles(seconds, n=4, method="inclusive")
        if len(seconds) > 1
        else [seconds[0]] * 3
    )
    return {
        "median_us": median * 1e6,
        "min_us": min(seconds) * 1e6,
        "q25_us": low * 1e6,
        "q75_us": high * 1e6,
        "rounds": len(seconds),
    }
