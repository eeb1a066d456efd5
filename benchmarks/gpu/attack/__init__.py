"""``python -m benchmarks gpu --only attack``: what breaks kernels, in five minutes.

* fuzz: random calls of every op, seeded, in random layouts at random offsets. Guard bands of 4 KiB
  lie either side of every argument, result and workspace, gaps and empty memory are NaN, arguments
  are compared with what they were, and the card is asked for a sum after each call.
* replays: the same bits 250 times, beside a stream of products that saturates the card.
* allocations: each allocation of a call fails once.
* sanitizer: compute-sanitizer, where it is installed.

Each has a share of the time. A call that breaks the card is named with its seed, and another
process goes on; ``python -m benchmarks.gpu.attack OP --backend NAME --seed N`` repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.gpu.attack import exhaustion, fuzz, replays, sanitizer
from benchmarks.gpu.worker import Context, Step

SHARES: Mapping[str, tuple[Callable[[Context], list[Step]], float]] = {
    "fuzz": (fuzz.steps, 0.40),
    "replays": (replays.steps, 0.15),
    "allocations": (exhaustion.steps, 0.10),
    "sanitizer": (sanitizer.steps, 0.35),
}
"""Steps of each kind, and its share of the time; what one leaves the next ones have."""


def steps(context: Context) -> Sequence[Step]:
    """All steps of this process, each within the share of its kind."""
    found: list[Step] = []
    end = 0.0
    for kind, (make, share) in SHARES.items():
        end += share
        found += [_within(context, kind, end, step) for step in make(context)]
    return found


def _within(context: Context, kind: str, end: float, step: Step) -> Step:
    """`step`, which is left out once so much of the time is over."""
    name, function = step

    def run() -> None:
        if context.left("attack") > (1 - end) * context.parts["attack"]:
            function()
        else:
            key = f"attack: {kind}, process {context.share[0]}"
            context.add("not run", f"from {name} on: its share of the time was used up", key)

    return name, run
