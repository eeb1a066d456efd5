"""``python -m benchmarks run``: check ops, then time them against their baselines on this CPU."""

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
Result = dict[str, Any]


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
            if runnable(case, call, [name])[name] is None:
                try:
                    check_backend(case, call, name)
                except AssertionError as error:
                    wrong.append(str(error))
    return wrong


def new_result(threads: int) -> Result:
    """A run on so many threads, to which this process is kept from here on.

    It is plain data: "machine", "limits", "wrong" (findings of the gate), "skipped" and
    "not timed" (backend or baseline -> reason) and "rows".
    """
    machine.pin(threads)
    result: Result = {"machine": machine.describe(CPU, threads), "rows": [], "wrong": []}
    return result | {"limits": {}, "skipped": {}, "not timed": {}}


def add(result: Result, bench: Bench, seconds: float, backends: Sequence[str] = ()) -> None:
    """Check the op and time every CPU shape for `seconds`; a wrong op is not timed."""
    result["limits"] = result["limits"] or machine.cpu_limits()
    reasons = runnable(bench, next(iter(bench.samples(CPU))), backends)
    able = [name for name, why in reasons.items() if why is None]
    result["skipped"] |= {f"{bench.name}: {name}": why for name, why in reasons.items() if why}
    wrong = gate(bench, able, CPU)
    result["wrong"] += wrong
    for shape in bench.timings if able and not wrong else ():
        if "cpu" in shape.devices:
            call = shape.make(CPU)
            with torch.inference_mode():
                timed = timing.functions(bench, able, backward=shape.backward)
                times, failed = timing.time_cpu(timed, call, seconds)
            where = f"{bench.name}, {shape.name}"
            result["not timed"] |= {f"{where}: {name}": why for name, why in failed.items()}
            result["rows"] += timing.rows(bench, shape, times, able, "cpu")


def report(result: Result) -> int:
    """Print the table and what is missing from it; returns the exit status."""
    print(tables.speedups(result))
    for name, reason in {**result["skipped"], **result["not timed"]}.items():
        print(f"not timed: {name}: {reason}")
    for text in result["wrong"]:
        print(f"WRONG, so not timed: {text}")
    return 1 if result["wrong"] or not result["rows"] else 0


def save(result: Result, path: Path) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)
