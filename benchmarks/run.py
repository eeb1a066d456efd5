"""``python -m benchmarks run``: check an op, then time it against its baselines on this CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, timing
from benchmarks.shapes import Bench
from bitdance_kernels._dispatch.backends import BackendError
from bitdance_kernels.testing import Call, Case, check_backend

CPU = torch.device("cpu")
_COLUMNS = ("median_us", "min_us", "q25_us", "q75_us")


def runnable(case: Case, call: Call, wanted: Sequence[str]) -> dict[str, str | None]:
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
    case: Bench,
    *,
    backends: Sequence[str] = (),
    threads: int = 1,
    seconds: float = 5.0,
    checked: bool = True,
    limits: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Time every CPU shape of `case`.

    Args:
        case: the op.
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
    result: dict[str, Any] = {"machine": machine.describe(CPU, threads), "rows": [], "wrong": []}
    result["not timed"] = {}
    call = next(iter(case.samples(CPU)))
    reasons = runnable(case, call, backends)
    result["skipped"] = {name: why for name, why in reasons.items() if why is not None}
    able = [name for name, why in reasons.items() if why is None]
    if checked:
        result["wrong"] = gate(case, able, CPU)
    if result["wrong"] or not able:
        return result
    result["limits"] = limits or machine.cpu_limits()
    for shape in case.timings:
        if "cpu" not in shape.devices:
            continue
        call = shape.make(CPU)
        with torch.inference_mode():
            timed = timing.functions(case, call, able, backward=shape.backward)
            times, failed = timing.time_cpu(timed, call, seconds)
        result["not timed"] |= {f"{shape.name}: {name}": why for name, why in failed.items()}
        result["rows"] += timing.rows(case, shape, times, able, "cpu")
    return result


def table(result: dict[str, Any]) -> str:
    """The run for people."""
    threads = result["machine"]["threads"]
    lines = [machine.headline(result["machine"], threads)]
    lines.append(f"measured in this run: {machine.bandwidths(result['limits'])}")
    left_out = {**result["skipped"], **result["not timed"]}
    lines += [f"not timed: {name}: {reason}" for name, reason in left_out.items()]
    shapes = list(dict.fromkeys(row["shape"] for row in result["rows"]))
    for shape in shapes:
        rows = [row for row in result["rows"] if row["shape"] == shape]
        best = min((r for r in rows if r["kind"] == "backend"), key=lambda r: r["median_us"])
        lines += ["", f"{rows[0]['op']}, {shape}; speed-up of {best['name']} over each"]
        lines.append(
            f"  {'':<18}{'median us':>12}{'least':>12}{'q25':>12}{'q75':>12}{'GB/s':>9}{'ratio':>9}"
        )
        for row in rows:
            ratio = row["median_us"] / best["median_us"]
            figures = "".join(f"{row[k]:12.1f}" for k in _COLUMNS)
            lines.append(f"  {row['name']:<18}{figures}{row['gb_s']:9.1f}{ratio:9.2f}")
    return "\n".join(lines)


def save(result: dict[str, Any], path: Path) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)
