"""``python -m benchmarks gpu``: check and time everything on a card, a part at a time.

Needs neither pytest nor a network. ``benchmarks.gpu.parts`` has the parts. The steps of a part run
in processes of their own, which keep a journal and are replaced when a step kills them: a run that
goes wrong keeps what it had. The checks, which mostly wait for Triton to compile, are shared by
several processes; all else has the card for itself. ``--dry-run`` goes through the same code on the
CPU, in one process, with Triton's interpreter.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import cpu
from benchmarks.gpu.parts import GRACE, PARTS, STEPS, result_of, stages
from benchmarks.gpu.worker import BROKEN, Context, collect, work, write
from benchmarks.machine import ROOT
from benchmarks.shapes import Bench
from bitdance_kernels._shared import native

DRY_RUN = 3600.0
"""Seconds of a part on the CPU, where nobody waits for the figures: each goes to its end."""

_PATIENCE = 45.0  # in a part with kernels whose blocks wait for each other, perhaps for ever
_POLL = 0.5
_CHECKERS = 12
"""Processes that share the checks, where there are so many cores; each takes 2 GB of the card."""


def main(
    benches: Sequence[Bench], out: Path, parts: Mapping[str, float], *, dry_run: bool = False,
    worker: tuple[int, int] | None = None,
) -> int:  # fmt: skip
    """Run the parts; returns the exit status: 0, or 1 if a check or a step failed.

    Args:
        benches: the ops.
        out: folder of the result files, ``gpu-PART.json`` or ``dry-run.json``, and of the journals.
        parts: seconds for each part to run; the build of the CUDA module is in those of the first.
        dry_run: on the CPU, in this process.
        worker: (i, n): this is a process that `supervise` started, the i-th of n.
    """
    if worker is not None or dry_run:
        share = worker or (0, 1)
        journal = journal_of(out, parts, *share)
        if worker is None:
            journal.unlink(missing_ok=True)
        status = work(Context(benches, journal, stages(parts), dry_run, share), STEPS)
        return status if worker else finish(collect(journal), out / "dry-run.json")
    begin = time.monotonic()
    problem = build()
    built = time.monotonic() - begin
    if problem:
        print(f"gpu: without the cuda backends: {problem}", file=sys.stderr)
    status = 0
    for name, seconds in parts.items():
        print(f"{name}: {PARTS[name].proves}", flush=True)
        status |= _run(benches, out, name, seconds - built, problem)
        built = 0.0
    return status


def _run(
    benches: Sequence[Bench], out: Path, name: str, seconds: float, problem: str | None
) -> int:
    """Run a part and write its result; returns the exit status."""
    ops, part = [bench.name for bench in benches], {name: seconds}
    count = min(_CHECKERS, os.cpu_count() or 1) if PARTS[name].shared else 1
    with ThreadPoolExecutor(count) as pool:
        shares = [(i, count) for i in range(count)]
        journals = list(pool.map(lambda share: run_parts(ops, out, part, share), shares))
    result = collect(*journals)
    missing = sum(not path.exists() for path in journals)
    if missing == len(journals):
        print(f"gpu: {name}: no process ever began", file=sys.stderr)
        return 1
    if missing:
        result["failed"]["run"] = f"{missing} of {len(journals)} processes never began"
    return finish(result | {"cuda module": problem or "built"}, result_of(out, name))


def journal_of(out: Path, parts: Mapping[str, float], i: int, count: int) -> Path:
    """Journal of the i-th of `count` processes that do these parts."""
    return out / "journals" / f"{'-'.join(parts)}-{i}-of-{count}.jsonl"


def run_parts(
    ops: Sequence[str], out: Path, parts: Mapping[str, float], share: tuple[int, int]
) -> Path:
    """Do a share of the parts in a process; returns its journal."""
    path = journal_of(out, parts, *share)
    path.unlink(missing_ok=True)
    command = worker_command(ops, out, parts, share)
    patience = _PATIENCE if list(parts) == ["decide"] else None
    supervise(command, path, sum(parts.values()) + GRACE, patience)
    return path


def worker_command(
    ops: Sequence[str], out: Path, parts: Mapping[str, float], share: tuple[int, int]
) -> list[str]:
    """What `supervise` runs."""
    budget = [f"{part}={seconds}" for part, seconds in parts.items()]
    command = [sys.executable, "-m", "benchmarks", "gpu", "--worker", *map(str, share)]
    return [*command, "--out", str(out), "--budget", *budget, "--only", *parts, "--ops", *ops]


def build() -> str | None:
    """Build the CUDA module if it is missing; None, or why there is none."""
    missing = native.cuda.unavailable()
    if missing is None:
        return None
    print("building the native modules", flush=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    # For the card alone, unless the environment asks for others: a third of the time.
    archs = {"BITDANCE_CUDA_ARCHS": "{}{}".format(*torch.cuda.get_device_capability())}
    environment = with_pybind11({**archs, **os.environ})
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        return "setup.py build_ext took more than five minutes"
    if done.returncode != 0:
        return f"setup.py build_ext failed: {done.stderr.strip()[-500:]}"
    return None if list(ROOT.glob("bitdance_kernels/_cuda*.so")) else f"{missing}; is nvcc there?"


def with_pybind11(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment`, where pybind11 is not installed with PyTorch's copy of it in its place."""
    if importlib.util.find_spec("pybind11") is not None:
        return dict(environment)
    folder = ROOT / "build" / "pybind11"
    folder.mkdir(parents=True, exist_ok=True)
    include = str(Path(torch.__file__).parent / "include")
    (folder / "pybind11.py").write_text(f"def get_include():\n    return {include!r}\n")
    path = os.pathsep.join(filter(None, [str(folder), environment.get("PYTHONPATH")]))
    return {**environment, "PYTHONPATH": path}


def supervise(
    command: Sequence[str], path: Path, seconds: float, patience: float | None = None
) -> None:
    """Run `command` until it has done all steps of the journal at `path`.

    A process that dies, or hangs in a step, costs that step: it is recorded as failed and the
    command is started again. After `seconds` the run ends whatever it was doing. It hangs when it
    has recorded nothing for `patience` seconds, by default a minute and a quarter of the time.
    """
    patience = GRACE + seconds / 4 if patience is None else patience
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": python_path}
    end = time.monotonic() + seconds
    idle = 0
    while time.monotonic() < end and idle < 3:
        process = subprocess.Popen(command, env=environment)
        stuck = False
        while process.poll() is None and not stuck:
            time.sleep(_POLL)
            silent = time.time() - path.stat().st_mtime if path.exists() else 0.0
            stuck = time.monotonic() > end or silent > patience
        if stuck:
            process.kill()
        status = process.wait()
        if status == 0:
            return
        step = collect(path)["doing"]
        if step is None:  # its card broke after a step, or it never began one
            idle = 0 if status == BROKEN else idle + 1
            continue
        idle, how = 0, "hung" if stuck else f"ended with status {status}"
        write(path, "failed", f"the process {how} in this step", step)
        write(path, "done", step)
        write(path, "doing", None)


def finish(result: Mapping[str, Any], path: Path) -> int:
    """Print what failed and write the result; returns the exit status.

    Of the checks that passed the file has their number by op, backend and kind.
    """
    wrong = [check for check in result["checks"] if check["wrong"] is not None]
    passed = Counter(
        f"{check['op']}, {check['backend']}, {check['check']}"
        for check in result["checks"]
        if check["wrong"] is None
    )
    for check in wrong:
        print(f"FAILED {check['op']} {check['backend']} {check['check']}: {check['wrong']}")
    for name, text in result["failed"].items():
        print(f"ERROR {name}: {text.strip().splitlines()[-1]}")
    for name, why in result["not run"].items():
        print(f"not run: {name}: {why}")
    print(f"{len(result['checks'])} checks, {len(wrong)} failed; {path}")
    cpu.save({**result, "checks": wrong, "passed": dict(sorted(passed.items()))}, path)
    return 1 if wrong or result["failed"] else 0
