"""The parts of a run on a card, those first of which least is proven.

Each fits a lease of a quarter of an hour with the machine's start and the build of the CUDA module,
and writes a file of its own, so the parts can run on different days.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu import (
    attack,
    attention,
    checks,
    decide,
    images,
    limits,
    small,
    timings,
    training,
)
from benchmarks.gpu.worker import Context, Step

Steps = Callable[[Context], Sequence[Step]]

LEASE, START, GRACE = 900.0, 300.0, 60.0
"""Seconds of a lease, of the start of its machine, and of waiting for a step that is late."""
SECONDS = LEASE - START - 2 * GRACE
"""Of a part; the build is in them."""
_MACHINE = 25.0


class Part(NamedTuple):
    """A part.

    Attributes:
        steps: makes its steps.
        proves: what is known after it, for a table.
        limits: whether the card's limits are measured first, since figures are held against them.
        shared: whether several processes share its steps.
        seconds: that it takes, with the build, unless others are given.
    """

    steps: Steps
    proves: str
    limits: bool = False
    shared: bool = False
    seconds: float = SECONDS


PARTS: Mapping[str, Part] = {
    "attack": Part(
        attack.steps,
        "random calls between guard bands, failing allocations, compute-sanitizer, and replays "
        "beside a full stream",
        shared=True,
        seconds=300.0,
    ),
    "decide": Part(
        decide.steps,
        "kernels for few rows (compute capability 9.0 and later), and the plans that use them",
        limits=True,
    ),
    "attention": Part(
        attention.steps, "attention against its bound and other libraries", limits=True
    ),
    "small": Part(small.steps, "packed bits, entropies and attention within patches", limits=True),
    "training": Part(training.steps, "training steps, their time and their memory", limits=True),
    "checks": Part(checks.steps, "every op and backend against its reference", shared=True),
    "large": Part(checks.large_steps, "tensors past 2^31 elements"),
    "timings": Part(timings.steps, "every op against what users would call instead", limits=True),
    "images": Part(images.steps, "whole images against the published sampler", limits=True),
}
STEPS: Mapping[str, Steps] = {
    "machine": limits.steps,
    **{name: part.steps for name, part in PARTS.items()},
}
"""Of the parts, and of what some of them begin with."""


def stages(parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds of `parts`, and before the first that needs the card's limits of measuring them."""
    found: dict[str, float] = {}
    for name, seconds in parts.items():
        if PARTS[name].limits and "machine" not in found:
            found["machine"] = min(_MACHINE, seconds)
            seconds -= found["machine"]
        found[name] = seconds
    return found


def result_of(out: Path, name: str) -> Path:
    """File of a part's result."""
    return out / f"gpu-{name}.json"


def due(*folders: Path) -> list[str]:
    """The parts: those without a result in any folder, in their order, then the oldest first."""

    def date(name: str) -> str:
        paths = (result_of(folder, name) for folder in folders)
        dates = (json.loads(p.read_text())["machine"]["date"] for p in paths if p.exists())
        return max(dates, default="")

    return sorted(PARTS, key=date)
