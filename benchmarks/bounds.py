"""Lower bounds on times, by the limits that a run has measured on its card.

An op at a shape takes at least as long as the bytes that it must move take a copy, its operations a
large product, its instructions the multiprocessors to issue, and one kernel after another to begin:
the longest of these bounds it. ``instructions.json`` holds what ``python -m tests.instructions``
counts in the machine code of ops whose work is integer arithmetic.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.model import bound
from benchmarks.shapes import all_benches
from bitdance.models.config import PRESETS

Run = dict[str, Any]
COUNTS = Path(__file__).with_name("instructions.json")

LANES = {"issued": 128, "integer": 64, "multiplied": 64, "population counts": 16}
"""Instructions of a kind that a multiprocessor does in a cycle, for threads (CUDA C++ Programming
Guide, arithmetic instructions, compute capability 9.0)."""

_CLOCKS = {"NVIDIA H100 80GB HBM3": 1.98, "NVIDIA H200": 1.98}
"""Highest clock in GHz of cards whose results do not have it."""


_LAUNCHES = ("launch to launch", "exchange, chain")


class Bound(NamedTuple):
    """The least time, and what takes it."""

    seconds: float
    by: str


@functools.lru_cache(maxsize=1)
def counts() -> dict[str, dict[str, float]]:
    """Instructions of each kind for an item, by op."""
    ops: dict[str, dict[str, float]] = json.loads(COUNTS.read_text(encoding="utf-8"))["ops"]
    return ops


def of_op(op: str, name: str, run: Run) -> Bound | None:
    """What bounds an op at a shape by the limits of a run.

    None if the run has not measured any, and for a shape that is not timed.
    """
    if run["machine"]["device"] != "cuda":
        return _measured(op, name, run)
    bench = all_benches().get(op)
    shape = next((s for s in bench.timings if s.name == name), None) if bench else None
    if shape is None:
        return None
    limits, found = run["limits"], []
    if "copy_gb_s" in limits:
        found.append(Bound(shape.bytes / limits["copy_gb_s"] / 1e9, "copy"))
    if "bf16_tflop_s" in limits and shape.half:
        found.append(Bound(shape.flops / limits["bf16_tflop_s"] / 1e12, "matrix rate"))
    cycles = _cycles(run)
    if cycles is not None and op in counts():
        slots = max(count / LANES[kind] for kind, count in counts()[op].items())
        found.append(Bound(shape.items * slots / cycles, "instructions"))
    launch = _fastest(run, *_LAUNCHES)
    if launch is not None:
        found.append(Bound(launch / 1e6, "launch"))
    return max(found, default=None)


def _measured(op: str, name: str, run: Run) -> Bound | None:
    """What a CPU's loops took in turns with the op."""
    rows = [*run["rows"], *run.get("models", ())]
    row = next((r for r in rows if (r["op"], r["shape"]) == (op, name) and "bound_us" in r), None)
    return Bound(row["bound_us"] / 1e6, row["bound"]) if row else None


def _cycles(run: Run) -> float | None:
    """Cycles of all multiprocessors in a second."""
    card = run["machine"]["cuda"]["devices"][0]
    clock = run["limits"].get("sm_clock_ghz", _CLOCKS.get(card["name"]))
    return None if clock is None else 1e9 * clock * card["multiprocessors"]


def _fastest(run: Run, *kinds: str) -> float | None:
    """Microseconds of the fastest way from a stage to the next among the probes of these kinds."""
    probes = (p for p in run.get("probes", ()) if p["probe"] in kinds)
    return min((probe["us"] for probe in probes if "us" in probe), default=None)


def of_image(model: str, batch: int, run: Run) -> dict[str, float] | None:
    """Milliseconds an image of the trunk, the head, the decoder and the whole, by a card's limits.

    None for a model that is not published, and for a run that has not measured all limits.
    """
    limits, stage = run["limits"], _fastest(run, *_LAUNCHES, "exchange, words")
    if model not in PRESETS or stage is None or not limits.keys() >= {
        "copy_gb_s", "bf16_tflop_s", "l2_gb_s"
    }:  # fmt: skip
        return None
    card = bound.Limits(
        copy=1e9 * limits["copy_gb_s"], matrix=1e12 * limits["bf16_tflop_s"],
        l2=1e9 * limits["l2_gb_s"], stage=stage / 1e6,
    )  # fmt: skip
    parts = bound.seconds(PRESETS[model], batch, card)
    return {part: 1e3 * seconds / batch for part, seconds in parts.items()}
