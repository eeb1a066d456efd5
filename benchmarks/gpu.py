"""``python -m benchmarks gpu``: check and time every op on a card, within ten minutes.

Needs neither pytest nor a network. Results are written after every op, so a run that is cut off
keeps what it had. ``--dry-run`` goes through the same code on the CPU, with Triton's interpreter.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from benchmarks import machine, run, timing
from bitdance_kernels.testing import Call, Case, Timing, check_backend, strided

_REPLAYS = 5


def main(cases: Sequence[Case], out: Path, *, seconds: float, quick: bool, dry_run: bool) -> int:
    """Run everything; returns the exit status: 0, or 1 if a check failed."""
    device = torch.device("cpu" if dry_run else "cuda")
    started = time.monotonic()
    result: dict[str, Any] = {
        "machine": machine.describe(device, torch.get_num_threads()),
        "dry_run": dry_run,
        "limits": {} if dry_run else machine.cuda_limits(),
        "checks": [],
        "rows": [],
        "failed": {},
        "not timed": {},
    }
    path = out / ("dry-run.json" if dry_run else "gpu.json")
    for done, case in enumerate(cases):
        left = seconds - (time.monotonic() - started)
        if left <= 0:
            result["failed"][case.name] = "not run: the time was used up"
            continue
        try:
            result["checks"] += list(_checks(case, device))
            share = left / (len(cases) - done) / max(len(case.timings), 1) / 2
            share = min(share, 0.5 if quick else 5.0)
            result["rows"] += _timings(case, device, share, result)
        except Exception:
            result["failed"][case.name] = traceback.format_exc()
        run.save(result, path)
        wrong = [check for check in result["checks"] if check["op"] == case.name and check["wrong"]]
        state = f"{len(wrong)} checks failed" if wrong else "checks passed"
        state = "error" if case.name in result["failed"] else state
        print(f"{time.monotonic() - started:6.1f} s  {case.name:<24} {state}", flush=True)
    run.save(result, path)
    failures = [check for check in result["checks"] if check["wrong"]]
    for check in failures:
        print(f"FAILED {check['op']} {check['backend']} {check['check']}: {check['wrong']}")
    for name, text in result["failed"].items():
        print(f"ERROR {name}: {text.strip().splitlines()[-1]}")
    print(f"{len(result['checks'])} checks, {len(failures)} failed; {path}")
    return 1 if failures or result["failed"] else 0


def _backends(case: Case, call: Call) -> list[str]:
    """Backends of `case` that can run `call`; the reference among them."""
    return [name for name, why in run.runnable(case, call, ()).items() if why is None]


def _checks(case: Case, device: torch.device) -> Iterator[dict[str, Any]]:
    """One record per backend, sample and kind of check; "wrong" is None or what was wrong."""
    kinds: dict[str, Callable[[Case, Call, str], None]] = {
        "reference": check_backend,
        "strided": _check_strided,
        "repeated": _check_repeated,
        "graph": _check_graph,
    }
    for call in case.samples(device):
        for backend, why in run.runnable(case, call, ()).items():
            if why is not None:
                continue
            for kind, check in kinds.items():
                wrong = None
                try:
                    check(case, call, backend)
                except AssertionError as error:
                    wrong = str(error)
                yield {
                    "op": case.name, "sample": call.name, "backend": backend, "check": kind,
                    "wrong": wrong,
                }  # fmt: skip


def _check_strided(case: Case, call: Call, backend: str) -> None:
    written = {id(call.args[i]) for i in case.mutates}
    check_backend(case, call.map(lambda t: t if id(t) in written else strided(t)), backend)


def _check_repeated(case: Case, call: Call, backend: str) -> None:
    """The same bits from every run."""
    if case.mutates:
        return  # the second run would start from the first one's result
    runs = [_leaves(case, call, backend) for _ in range(_REPLAYS)]
    for other in runs[1:]:
        _assert_same(runs[0], other, "a repeated run differs")


def _check_graph(case: Case, call: Call, backend: str) -> None:
    """Replay on changed inputs, with outputs poisoned and the allocator stirred in between."""
    if case.mutates or not any(t.is_cuda for t in call.tensors()):
        return
    fixed = call.map(lambda t: t.clone())
    _leaves(case, fixed, backend)  # compiles and loads outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _leaves(case, fixed, backend)
    for _ in range(_REPLAYS):
        for tensor in fixed.tensors():
            if tensor.is_floating_point():
                tensor.neg_()
            elif tensor.dtype == torch.uint8:
                tensor.bitwise_not_()
        for tensor in captured:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 85)
        stirred = [torch.empty(1 << (10 + i % 12), device="cuda") for i in range(64)]
        del stirred
        graph.replay()
        torch.cuda.synchronize()
        _assert_same(captured, _leaves(case, fixed, backend), "a graph replay differs")


def _leaves(case: Case, call: Call, backend: str) -> list[torch.Tensor]:
    with torch.no_grad():
        results = case.op(*call.args, **call.kwargs, backend=backend)
    return [t for t in pytree.tree_leaves(results) if isinstance(t, torch.Tensor)]


def _assert_same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], message: str) -> None:
    for x, y in zip(a, b, strict=True):
        same = (x == y) | ((x != x) & (y != y))
        if not bool(same.all()):
            raise AssertionError(f"{message} in {int((~same).sum())} of {x.numel()} elements")


def _spread(function: Callable[..., Any]) -> Callable[[Call], Any]:
    return lambda call: function(*call.args, **call.kwargs)


def _timings(
    case: Case, device: torch.device, seconds: float, result: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    if device.type == "cpu":  # a dry run: the code path on the smallest sample, not a measurement
        call = next(c for c in case.samples(device) if all(t.numel() for t in c.tensors()))
        shape = Timing(call.name, lambda _: call, bytes=1)
        able = _backends(case, call)
        with torch.inference_mode():
            times, _ = timing.time_cpu(timing.functions(case, call, able), call, 0.0)
        yield from timing.rows(case, shape, times, able, "cpu")
        return
    for shape in case.timings:
        if "cuda" not in shape.devices:
            continue
        call = shape.make(device)
        able = _backends(case, call)
        timed = dict(timing.functions(case, call, able, backward=shape.backward))
        for name, function in list(case.baselines.items()):
            compiled = _spread(torch.compile(function, dynamic=False))
            timed[f"{name}, compiled"] = (
                timing.with_backward(compiled) if shape.backward else compiled
            )
        with torch.inference_mode():
            times, failed = timing.time_cuda(timed, shape, seconds)
        for name, why in failed.items():
            target = "failed" if name in able else "not timed"
            result[target][f"{case.name}, {shape.name}: {name}"] = why
        yield from timing.rows(case, shape, times, able, "cuda")
