"""What ``python -m benchmarks gpu --only attack`` finds on a card, in five minutes.

* Random calls of every op, on every backend for cards that takes them: each argument, result and
  workspace lies between guard bands of 4 KiB, in random layouts at random offsets; gaps and empty
  memory are NaN. Results and gradients keep the rules of ``bitdance_kernels.testing``, arguments
  stay as they were, and after each call the card is asked for a sum.
* compute-sanitizer's memcheck and racecheck report nothing on the smallest sample of any op in CUDA
  C++; where it is not installed the row stays empty.
* 250 runs of each kernel give the same bits beside a stream of products that saturates the card.
* Each allocation of a call fails once: the error is ``torch.OutOfMemoryError``, no tensor stays
  behind, and the next call gives the bits that it gave before.

Without a card nothing of this is measured. CI plants each fault in the interpreter of Triton, where
the same code must find it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import gpu
from benchmarks.gpu import parts
from benchmarks.shapes import all_benches
from tests.reliability.promise import Promise

FUZZED, WATCHED, REPLAYED, EXHAUSTED = (
    "random calls on a card",
    "kernels under compute-sanitizer",
    "replays beside a full stream",
    "failing allocations on a card",
)
PROMISES: tuple[Promise, ...] = (
    Promise(
        FUZZED,
        "Random calls of every op write into their results alone, and keep the rules of errors",
        4000, "calls", "card",
    ),
    Promise(
        WATCHED,
        "memcheck and racecheck report nothing on the smallest sample of an op in CUDA C++",
        48, "runs", "card",
    ),
    Promise(
        REPLAYED,
        "Every kernel gives the same bits in 250 runs beside a stream that fills the card",
        15000, "replays", "card",
    ),
    Promise(
        EXHAUSTED,
        "When an allocation of a call fails, the error is typed and nothing stays behind",
        50, "backends", "card",
    ),
)  # fmt: skip


def measure(scale: float) -> Mapping[str, float]:
    """Figures of a run; none without a card.

    Args:
        scale: share of five minutes to take.

    Raises:
        AssertionError: a check failed, or a step did; names op, backend and seed.
    """
    if not torch.cuda.is_available():
        return {}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        os.environ.pop("TRITON_INTERPRET", None)  # of the tests; the workers take the card
        out = Path(folder)
        benches = list(all_benches().values())
        gpu.main(benches, out, {"attack": scale * parts.PARTS["attack"].seconds})
        return figures(json.loads(parts.result_of(out, "attack").read_text()))


def figures(result: Mapping[str, Any]) -> Mapping[str, float]:
    """The figures of a result of the part "attack"; of what did not run there is none.

    Raises:
        AssertionError: a check failed, or a step did.
    """
    wrong = [f"{c['op']}, {c['backend']}, {c['sample']}: {c['wrong']}" for c in result["checks"]]
    wrong += [f"{step}: {text.strip().splitlines()[-1]}" for step, text in result["failed"].items()]
    if wrong:
        raise AssertionError("; ".join(wrong))
    found: dict[str, float] = {}
    for key, count in result["passed"].items():
        check = key.rpartition(", ")[2]
        replays = re.fullmatch(r"(\d+) replays", check)
        if replays:
            found[REPLAYED] = found.get(REPLAYED, 0) + count * int(replays[1])
        else:
            name = {"fuzz": FUZZED, "allocations fail": EXHAUSTED}.get(check, WATCHED)
            found[name] = found.get(name, 0) + count
    return found
