"""Long runs: nothing grows with the number of calls, and threads, forks and workers mix.

Images, calls of ops, training steps and served requests are made by the thousand. At nine points,
after garbage collection and ``malloc_trim``, the process counts its pages, the bytes that malloc
has given out, Python's memory blocks and objects, open files and threads. What all intervals but
the largest add must stay below noise that does not depend on the calls (``growth.ALLOWED``: 64 KiB
of the heap, 500 blocks); what grows once is in one interval. So over 5,000 calls a leak of 14 bytes
a call is found, and an object that every tenth call leaves behind. The planted leaks of
``test_long_runs.py`` are found by the same code. Calls of ops are every sample on the C++ backend
and the reference, with gradients, and every call that is refused. Training is the five kinds of run
with their checkpoints. Requests are answered, refused and left.

Eight threads generate with one pipeline and call ops, and every result is compared, while the
process forks children that do the same on one thread and data loaders start and end their workers.

Not watched: memory of a card, and of Triton's caches, which hold a program for each specialization.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.reliability.long_runs import growth, mixed, op_calls, training
from tests.reliability.promise import Promise

PROMISES = (
    Promise(
        "images", "Nothing grows with the number of generated images.", 5000, "calls", "nightly"
    ),
    Promise(
        "op calls", "Nothing grows with calls of ops, their gradients, or refused calls.", 500_000,
        "calls", "nightly",
    ),
    Promise(
        "training steps", "Nothing grows with the steps of training, of every kind.", 2000,
        "steps", "nightly",
    ),
    Promise(
        "requests", "Nothing grows with requests that are served, refused or left.", 5000,
        "requests", "nightly",
    ),
    Promise(
        "calls in threads",
        "Calls in 8 threads have the bits that they have alone, beside forks and data workers.",
        10_000, "calls", "nightly",
    ),
    Promise(
        "forks", "A forked child with one thread computes what its parent does.", 200, "children",
        "nightly",
    ),
)  # fmt: skip

ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""Without the memory that malloc keeps for each thread, which fills for thousands of requests and
counts as given out."""


def measure(scale: float) -> Mapping[str, float]:
    """Figures of the promises; `scale` times the goals are run."""
    import torch

    def scaled(goal: float, least: int) -> int:
        return max(round(goal * scale), least)

    figures: dict[str, float] = {}
    together = mixed.run_mixed(scaled(10_000 / mixed.THREADS, 10), scaled(200, 2), scaled(100, 1))
    figures["calls in threads"], figures["forks"] = together.calls, together.forks
    if not growth.is_available():
        return figures  # what grows is counted by glibc and Linux
    torch.set_num_threads(1)
    figures["images"] = watch_images(scaled(5000, 40))
    figures["op calls"] = watch_ops(scaled(500_000, 4000))
    figures["requests"] = watch_requests(scaled(5000, 40))
    with tempfile.TemporaryDirectory() as folder:
        figures["training steps"] = training.watch_training(Path(folder), scaled(2000, 100))
    return figures


def watch_images(calls: int) -> int:
    """Check that calls of a pipeline leave nothing behind; returns their number."""
    from tests.model.helpers.tiny import tiny_pipeline

    pipeline = tiny_pipeline()

    def draw(number: int) -> None:
        labels = [(number + i) % 5 for i in range(1 + number % 3)]
        pipeline(labels, seed=number, num_inference_steps=2, output_type="pt")

    return growth.flat("images", draw, calls, warm_up=60)


def watch_ops(calls: int, ops: Sequence[str] = ()) -> int:
    """Check that calls of ops, of all by default, leave nothing behind; returns their number."""
    every = op_calls.every_call(ops)
    rounds = max(-(-calls // len(every)), 8)

    def one_round(_: int) -> None:
        for call in every:
            call()

    return len(every) * growth.flat("rounds of op calls", one_round, rounds, warm_up=8)


def watch_requests(calls: int) -> int:
    """Check that requests leave nothing behind; returns the number of those that are answered."""
    from tests.model.helpers import serving
    from tests.model.helpers.tiny import tiny_pipeline

    part = 20
    with serving.served(tiny_pipeline()) as (engine, port):
        rounds = max(calls // part, 2)

        def some(_: int) -> None:
            serving.traffic(engine, port, part)

        return part * growth.flat("rounds of 20 requests", some, rounds, warm_up=3)
