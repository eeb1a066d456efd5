"""Timing: functions take turns on the CPU; on a card graphs over rotating inputs are replayed."""

from __future__ import annotations

import functools
import statistics
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.shapes import Bench, Timing
from bitdance_kernels.testing import Call

Functions = Mapping[str, Callable[[Call], Any]]
Seconds = dict[str, list[float]]

MIN_ROUNDS = 5
# Minimum duration of a measurement, so that the clock and the call of a lambda do not matter.
_MIN_SECONDS = 2e-3
_TURNS_ON_A_CARD = 3


def functions(bench: Bench, backends: Sequence[str], *, backward: bool = False) -> Functions:
    """What is timed against each other: backends of the op, and its baselines."""
    of_op = {name: functools.partial(bench.op, backend=name) for name in backends}
    return of_calls({**of_op, **bench.baselines}, backward=backward)


def of_calls(functions: Mapping[str, Callable[..., Any]], *, backward: bool = False) -> Functions:
    """The functions, each of which now takes a ``Call``."""

    def of_call(function: Callable[..., Any]) -> Callable[[Call], Any]:
        return lambda call: function(*call.args, **call.kwargs)

    timed = {name: of_call(function) for name, function in functions.items()}
    return {name: with_backward(f) for name, f in timed.items()} if backward else timed


def with_backward(function: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """`function`, and the gradients of all floating-point arguments."""

    def timed(call: Call) -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            call = call.map(lambda t: t.detach().requires_grad_(t.is_floating_point()))
            leaves = [t for t in call.tensors() if t.requires_grad]
            results = pytree.tree_leaves(function(call))
            outputs = [t for t in results if isinstance(t, Tensor) and t.requires_grad]
            return torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs])

    return timed


def take_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, *, seconds: float = 0.0,
    min_seconds: float = 0.0,
) -> Seconds:  # fmt: skip
    """Seconds per call of each way, one value a round, after a call to load modules and allocate.

    The ways take turns, so that a change of the machine's speed meets all of them alike
    (``torch.utils.benchmark`` and ``timeit`` time one after the other). There are at least so many
    `rounds`, which take at least `seconds`; a turn repeats its way for `min_seconds`.
    """
    timers = {name: timeit.Timer(way) for name, way in ways.items()}
    repeats = {}
    for name, timer in timers.items():
        timer.timeit(1)
        once = timer.timeit(1) if min_seconds else 1.0
        repeats[name] = max(1, round(min_seconds / max(once, 1e-7)))
    times: Seconds = {name: [] for name in timers}
    start, done = time.perf_counter(), 0
    while timers and (done < rounds or time.perf_counter() - start < seconds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(repeats[name]) / repeats[name])
        done += 1
    return times


def medians(times: Seconds) -> dict[str, float]:
    """Median seconds of each way."""
    return {name: statistics.median(values) for name, values in times.items()}


def time_cpu(
    timed: Functions, call: Call, seconds: float, *, min_seconds: float = _MIN_SECONDS
) -> tuple[Seconds, dict[str, str]]:
    """Seconds per call of each function in each round, and for each that failed the reason.

    Large inputs come from memory each time; small ones are warm.
    """
    ways, failed = {}, {}
    for name, function in timed.items():
        try:
            function(call)
            ways[name] = functools.partial(function, call)
        except Exception as error:  # a baseline may not take this dtype
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return take_turns(ways, MIN_ROUNDS, seconds=seconds, min_seconds=min_seconds), failed


def time_cuda(timed: Functions, timing: Timing, seconds: float) -> tuple[Seconds, dict[str, str]]:
    """Seconds per call of each function, L2-cold, and for each that failed the reason.

    Every function is captured into a graph that calls it on one input set after the other; the sets
    together are more than twice the L2 cache, so each call finds its inputs in device memory.
    """
    from triton.testing import do_bench

    device = torch.device("cuda")
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    sets = min(64, max(2, -(-2 * cache // max(timing.bytes, 1))))
    with torch.inference_mode(False):  # gradients may be asked for
        calls = [timing.make(device) for _ in range(sets)]
    graphs, failed = {}, {}
    for name, function in timed.items():
        try:
            graphs[name] = _capture(function, calls)
        except Exception as error:  # a baseline may not run on a card, or not in a graph
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            torch.cuda.synchronize()
    times: Seconds = {name: [] for name in graphs}
    milliseconds = 1e3 * seconds / (_TURNS_ON_A_CARD * max(len(graphs), 1))
    start = time.perf_counter()
    for _ in range(_TURNS_ON_A_CARD):
        for name, graph in graphs.items():
            if times[name] and time.perf_counter() - start > 2 * seconds:
                continue  # do_bench replays a slow graph seven times, however little it may take
            replays = do_bench(graph.replay, warmup=1, rep=milliseconds, return_mode="all")
            times[name] += [ms / 1e3 / sets for ms in replays]
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
    bench: Bench, timing: Timing, times: Seconds, backends: Sequence[str], device: str
) -> list[dict[str, Any]]:
    """One row per function: median, minimum, quartiles, and rates by bytes and operations."""
    return [
        {
            "op": bench.name, "shape": timing.name, "name": name,
            "kind": "backend" if name in backends else "baseline", "device": device,
            **spread(values), "gb_s": timing.bytes / median / 1e9,
            "gflop_s": timing.flops / median / 1e9,
        }
        for (name, values), median in zip(times.items(), medians(times).values(), strict=True)
    ]  # fmt: skip


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, minimum and quartiles of rounds in microseconds, and the number of rounds."""
    several = seconds if len(seconds) > 1 else [*seconds, *seconds]
    low, median, high = statistics.quantiles(several, n=4, method="inclusive")
    values = {"median_us": median, "min_us": min(seconds), "q25_us": low, "q75_us": high}
    return {**{name: 1e6 * value for name, value in values.items()}, "rounds": len(seconds)}
