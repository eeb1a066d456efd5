"""``python -m benchmarks run``: check an op, then time it against its baselines on this CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, tables, timing
from benchmarks.shapes import Bench
from bitdance_kernels._dispatch.backends import BackendError
from bitdance_kernels.testing import Call, Case, check_backend

CPU = torch.device("cpu")


def runnable(case: Case, call: Call, wanted: Sequence[str] = ()) -> dict[str, str | None]:
    """For each backend of the op (or each wanted one) None, or why it cannot run `call`."""
    reasons: dict[str, str | None] = {}
    for name in wanted or case.kernel_op.backends:
        try:
            with torch.no_grad():
                case.op(*call.args, **call.kwargs, backend=name)
            reasons[name] = None
        except BackendError as error:
            reasons[name] = str(error)
        except torch.OutOfMemoryError as error:  # a reference may need many times the memory
            reasons[name] = str(error).splitlines()[0]
    return reasons


def gate(case: Case, backends: Sequence[str], device: torch.device) -> list[str]:
    """What is wrong with these backends on the samples of the case; empty: nothing."""
    wrong = []
    for call in case.samples(device):
        for name in backends:
            if runnable(case, call, [name])[name] is not None:
                continue
            try:
                check_backend(case, call, name)
            except AssertionError as error:
                wrong.append(str(error))
    return wrong


def run(
    bench: Bench,
    *,
    backends: Sequence[str] = (),
    threads: int = 1,
    seconds: float = 5.0,
    checked: bool = True,
    limits: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Time every CPU shape of `bench`.

    Args:
        bench: the op.
        backends: only these; all by default.
        threads: to keep the process to.
        seconds: for each shape.
        checked: hold the backends against the reference first.
        limits: those of this run, if they have been measured.

    Returns:
        The run as plain data: "machine", "limits", "wrong" (findings of the gate; then no rows),
        "skipped" (backend -> reason), "not timed" (baseline -> reason) and "rows".
    """
    machine.pin(threads)
    reasons = runnable(bench, next(iter(bench.samples(CPU))), backends)
    able = [name for name, why in reasons.items() if why is None]
    result: dict[str, Any] = {
        "machine": machine.describe(CPU, threads),
        "rows": [],
        "wrong": gate(bench, able, CPU) if checked else [],
        "not timed": {},
        "skipped": {name: why for name, why in reasons.items() if why is not None},
    }
    if result["wrong"] or not able:
        return result
    result["limits"] = limits or machine.cpu_limits()
    for shape in bench.timings:
        if "cpu" not in shape.devices:
            continue
        call = shape.make(CPU)
        with torch.inference_mode():
            timed = timing.functions(bench, call, able, backward=shape.backward)
            times, failed = timing.time_cpu(timed, call, seconds)
        result["not timed"] |= {f"{shape.name}: {name}": why for name, why in failed.items()}
        result["rows"] += timing.rows(bench, shape, times, able, "cpu")
    return result


def table(result: dict[str, Any]) -> str:
    """The run for people."""
    left_out = {**result["skipped"], **result["not timed"]}
    reasons = [f"not timed: {name}: {reason}" for name, reason in left_out.items()]
    return "\n".join([tables.section(result["rows"][0]["op"], result), *reasons])


def save(result: dict[str, Any], path: Path) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)
