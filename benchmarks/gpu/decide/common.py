"""What the steps share: graphs, turns, and the rule that stops what a wrong kernel would spoil."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from benchmarks.gpu import checks
from benchmarks.gpu.worker import Context
from benchmarks.model.paths import Clock
from bitdance.sampling import config, graphs

K = TypeVar("K", bound=Hashable)

CHECK = "decide: right"
"""Begin of the keys of the steps that hold the new kernels against the reference."""
_PERSISTENT = f"{CHECK}, denoise_patch"
ROUNDS = 5


def captured(context: Context, function: Callable[[], Any]) -> Callable[[], Any]:
    """A replay of `function` as a CUDA graph, with its result if that is a tensor.

    In a dry run it is the function itself, called once.
    """
    if context.dry_run:
        function()
        return function
    run = graphs.make_runner(context.device)

    def step() -> tuple[torch.Tensor, ...]:
        result = function()
        return (result,) if isinstance(result, torch.Tensor) else ()

    def replay() -> torch.Tensor | None:
        results: tuple[torch.Tensor, ...] = run(step)
        return results[0] if results else None

    replay()  # warms up; the next call captures
    replay()
    return replay


def microseconds(
    context: Context, ways: Mapping[K, Callable[[], object]], *, calls: int = 1
) -> dict[K, list[float]]:
    """Microseconds a call of each way, one value a round; the ways take turns."""
    clock, rounds = Clock(context.device), 1 if context.dry_run else ROUNDS
    times: dict[K, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds = clock.seconds(lambda way=way: [way() for _ in range(calls)])  # type: ignore[misc]
            times[name].append(1e6 * seconds / calls)
    return times


def add(context: Context, what: str, **figures: Any) -> None:
    """Record figures."""
    context.add("ways", {"what": what, **figures})


def time_ways(
    context: Context, what: str, ways: Mapping[str, Callable[[], Any]], *, parts: int = 1,
    calls: int = 1, **figures: Any,
) -> None:  # fmt: skip
    """Capture each way, time them in turns, and record microseconds of one of its `parts`.

    Each turn is `calls` replays. ``ways`` in a report is the table of the figures.
    """
    replays = {name: captured(context, way) for name, way in ways.items()}
    for name, us in microseconds(context, replays, calls=calls).items():
        us = [value / parts for value in us]
        add(context, what, way=name, us=statistics.median(us), all_us=us, **figures)


def records(context: Context, what: str) -> Iterator[dict[str, Any]]:
    """The figures that were recorded of something."""
    return (record for record in context.result["ways"] if record["what"] == what)


def wrong(context: Context) -> str | None:
    """Which check of a new kernel has failed, if one has; see `plans` for the persistent one."""
    return checks.wrong(context, lambda key: key.startswith(CHECK) and key != _PERSISTENT)


def plans(context: Context) -> Sequence[str]:
    """The plans to measure: "persistent" only while its kernel was not found wrong."""
    why = checks.wrong(context, lambda key: key == _PERSISTENT)
    return [plan for plan in config.PLANS if why is None or plan != "persistent"]


def unless_wrong(
    context: Context, name: str, function: Callable[[], None]
) -> tuple[str, Callable[[], None]]:
    """A step that runs only while no new kernel was found wrong."""

    def run() -> None:
        why = wrong(context)
        if why is None:
            function()
        else:
            context.add("not run", why, f"decide: {name}")

    return name, run


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Without gradients, and not in inference mode, whose tensors graphs cannot write later."""
    with torch.inference_mode(False), torch.no_grad():
        yield
