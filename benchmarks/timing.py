"""Timing: functions take turns on the CPU; on a card graphs over rotating inputs are replayed."""

from __future__ import annotations

import functools
import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks import limits
from benchmarks.shapes import Bench, Timing
from bitdance_kernels.testing import Call

Functions = Mapping[str, Callable[[Call], Any]]
Seconds = dict[str, list[float]]

MIN_ROUNDS = 5
# Minimum duration of a measurement, so that the clock and the call of a lambda do not matter.
_MIN_SECONDS = 2e-3
_TURNS_ON_A_CARD = 3
_BOUND = "bound"


def functions(bench: Bench, backends: Sequence[str], *, backward: bool = False) -> Functions:
    """What is timed against each other: backends of the op, and its baselines."""
    of_op = {name: functools.partial(bench.op, backend=name) for name in backends}
    return of_calls({**of_op, **bench.baselines}, backward=backward)


def chosen_and_peers(
    bench: Bench, chosen: str, backends: Sequence[str], *, backward: bool = False
) -> Functions:
    """What is timed on a CPU: the op as users call it, `backends` by name, and the peers."""
    of_op = {chosen: bench.op}
    of_op |= {name: functools.partial(bench.op, backend=name) for name in backends}
    return of_calls({**of_op, **(bench.peers or bench.baselines)}, backward=backward)


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


class Turn(NamedTuple):
    """Seconds per call: elapsed, and of all threads of this process."""

    wall: float
    cpu: float


def take_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, *, seconds: float = 0.0,
    min_seconds: float = 0.0,
) -> dict[str, list[Turn]]:  # fmt: skip
    """A turn of each way in each round, after a call to load modules and allocate.

    The ways take turns, so that a change of the machine's speed meets all of them alike
    (``torch.utils.benchmark`` and ``timeit`` time one after the other), in another order in each
    round, since each finds in the caches what the one before has left there. There are at least so
    many `rounds`, which take at least `seconds`; a turn repeats its way for `min_seconds`. A way of
    which a round takes more than all `seconds` is left out after ``MIN_ROUNDS`` of them.
    """
    repeats = {}
    for name, way in ways.items():
        _turn(way, 1)
        once = _turn(way, 1).wall if min_seconds else 1.0
        repeats[name] = max(1, round(min_seconds / max(once, 1e-7)))
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    order, draws = list(ways), random.Random(0)
    start, done = time.perf_counter(), 0
    while ways and (done < rounds or time.perf_counter() - start < seconds):
        draws.shuffle(order)
        for name in order:
            if done < max(MIN_ROUNDS, rounds) or turns[name][0].wall < seconds:
                turns[name].append(_turn(ways[name], repeats[name]))
        done += 1
    return turns


def _turn(way: Callable[[], object], repeats: int) -> Turn:
    collects = gc.isenabled()
    gc.disable()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        way()
    turn = Turn((time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats)
    if collects:
        gc.enable()
    return turn


def medians(times: Mapping[str, Sequence[Turn]]) -> dict[str, float]:
    """Median elapsed seconds of each way."""
    return {name: statistics.median(turn.wall for turn in t) for name, t in times.items()}


def compare(
    ways: Mapping[str, Callable[[], object]], seconds: float, *, bound: limits.Limit | None = None,
    min_seconds: float = _MIN_SECONDS, threads: int = 1,
) -> tuple[list[dict[str, Any]], dict[str, str]]:  # fmt: skip
    """Rows of the ways, ours first, and the reasons of those that failed.

    Times of one thread are the processor's, those of several elapsed. A row has its spread, the
    median of the other clock, and the ratio to ours as median, minimum and maximum of the rounds;
    ours has the bound and the share of it that is reached, measured in the same rounds.
    """
    able, failed = {}, {}
    for name, way in ways.items():
        try:
            way()
            able[name] = way
        except Exception as error:  # a baseline may not be here, or not take this dtype
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    ours = next(iter(ways))
    if ours in failed:
        raise RuntimeError(f"{ours}: {failed[ours]}")
    loop = {_BOUND: bound.run} if bound else {}
    turns = take_turns(able | loop, MIN_ROUNDS, seconds=seconds, min_seconds=min_seconds)
    kind, other = ("cpu", "wall") if threads == 1 else ("wall", "cpu")
    times = {name: [getattr(turn, kind) for turn in t] for name, t in turns.items()}
    rows = []
    for name in able:
        row: dict[str, Any] = {"name": name, "kind": "backend" if name == ours else "baseline"}
        row |= spread(times[name])
        row[f"{other}_us"] = 1e6 * statistics.median(getattr(t, other) for t in turns[name])
        if name != ours:
            row |= {"ratio": _ratio(times[name], times[ours])}
        elif bound:
            row["bound"] = bound.by
            row["bound_us"] = 1e6 * bound.scale * statistics.median(times[_BOUND])
            row["share"] = bound.scale * _ratio(times[_BOUND], times[ours])[0]
        rows.append(row)
    return rows, failed


def peak_bytes(function: Callable[[], object]) -> int:
    """Bytes on the CPU that a call holds at its peak beyond those from before it."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    events: Any = profile.profiler
    found = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(found, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(sizes), default=0)


def _ratio(times: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Median, minimum and maximum of the rounds that have both."""
    ratios = [a / b for a, b in zip(times, ours, strict=False)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def time_cpu(
    ours: str, timed: Functions, shape: Timing, seconds: float, *,
    min_seconds: float = _MIN_SECONDS,
) -> tuple[list[dict[str, Any]], dict[str, str]]:  # fmt: skip
    """Rows of functions of a call at a shape, as ``compare``, with rates.

    Large inputs come from memory each time; small ones are warm.
    """
    with torch.inference_mode(False):  # gradients may be asked for
        call = shape.make(torch.device("cpu"))
    ways = {name: functools.partial(function, call) for name, function in timed.items()}
    bound = None
    if limits.unavailable() is None:
        results = [t for t in pytree.tree_leaves(ways[ours]()) if isinstance(t, Tensor)]
        written = min(shape.bytes, sum(t.numel() * t.itemsize for t in results))
        flops = 0 if shape.items else shape.flops  # the limit counts float operations only
        bound = limits.of(shape.bytes - written, written, flops, call.tensors())
    rows, failed = compare(ways, seconds, bound=bound, min_seconds=min_seconds)
    rates = {"gb_s": shape.bytes, "gflop_s": shape.flops}
    return [r | {k: n / r["median_us"] / 1e3 for k, n in rates.items()} for r in rows], failed


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
            **spread(values), "gb_s": timing.bytes / statistics.median(values) / 1e9,
            "gflop_s": timing.flops / statistics.median(values) / 1e9,
        }
        for name, values in times.items()
    ]  # fmt: skip


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, minimum and quartiles of rounds in microseconds, and the number of rounds."""
    several = seconds if len(seconds) > 1 else [*seconds, *seconds]
    low, median, high = statistics.quantiles(several, n=4, method="inclusive")
    values = {"median_us": median, "min_us": min(seconds), "q25_us": low, "q75_us": high}
    return {**{name: 1e6 * value for name, value in values.items()}, "rounds": len(seconds)}
