"""``python -m benchmarks gpu``: check and time everything on a card, within ten minutes.

Needs neither pytest nor a network. Five parts: whether every op is right on the card, past 2^31
elements too, what the machine can do, how fast the ops are, how fast whole images are. Results are
written after every step, and the steps run in processes of their own, which are replaced when a
step kills them: a run that goes wrong keeps what it had. The checks, which mostly wait for Triton
to compile, are shared by several processes; all else has the card for itself. ``--dry-run`` goes
through the same code on the CPU, in one process, with Triton's interpreter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import run
from benchmarks.gpu import checks, images, limits, timings
from benchmarks.gpu.worker import Context, Step, work
from benchmarks.shapes import Bench
from bitdance_kernels._shared import native

PARTS: Mapping[str, Callable[[Context], Sequence[Step]]] = {
    "checks": checks.steps,
    "large": checks.large_steps,
    "machine": limits.steps,
    "timings": timings.steps,
    "images": images.steps,
}
BUDGET = {"checks": 120.0, "large": 25.0, "machine": 15.0, "timings": 190.0, "images": 210.0}
"""Seconds of each part: 560 in all."""
QUICK = {"checks": 45.0, "large": 15.0, "machine": 10.0, "timings": 30.0, "images": 20.0}
DRY_RUN = dict.fromkeys(PARTS, 3600.0)
"""On the CPU nobody waits for the figures: each part goes to its end."""

ROOT = Path(__file__).parents[2]
# A step that is this late is stuck: its process is ended, and the run goes on behind it.
_GRACE = 60.0
_POLL = 0.5
_CHECKERS = 12
"""Processes that share the checks, where there are so many cores; each takes 2 GB of the card."""


def main(
    cases: Sequence[Bench],
    out: Path,
    parts: Mapping[str, float],
    *,
    quick: bool,
    dry_run: bool,
    worker: bool = False,
    share: tuple[int, int] = (0, 1),
) -> int:
    """Run the parts; returns the exit status: 0, or 1 if a check or a step failed.

    Args:
        cases: the ops.
        out: folder of the result file, ``gpu.json`` or ``dry-run.json``.
        parts: seconds for each part that is wanted.
        quick: short timings.
        dry_run: on the CPU, in this process.
        worker: this is a process that `supervise` started.
        share: of a process that checks with others: which one of how many.
    """
    path = out / ("dry-run.json" if dry_run else "gpu.json")
    if not worker:
        path.unlink(missing_ok=True)
    if dry_run or worker:
        context = Context.open(cases, path, parts, quick=quick, dry_run=dry_run, share=share)
        status = work(context, PARTS)
        return status if worker else summary(context.result, path)
    problem = build()
    if problem:
        print(f"gpu: without the cuda backends: {problem}", file=sys.stderr)
    names = [case.name for case in cases]
    missing = check_in_parallel(names, path, parts["checks"]) if "checks" in parts else None
    rest = {part: seconds for part, seconds in parts.items() if part != "checks"}
    if rest:
        command = worker_command(names, out, rest, quick=quick)
        supervise(command, path, sum(rest.values()) + _GRACE)
    if not path.exists():
        print("gpu: the process that does the steps never began", file=sys.stderr)
        return 1
    result = json.loads(path.read_text())
    result["cuda module"] = problem or "built"
    if missing:
        result["failed"]["checks"] = missing
    status = summary(result, path)
    run.save(condensed(result), path)
    return status


def worker_command(
    ops: Sequence[str],
    out: Path,
    parts: Mapping[str, float],
    *,
    quick: bool,
    share: tuple[int, int] = (0, 1),
) -> list[str]:
    """What `supervise` runs."""
    budget = [f"{part}={seconds}" for part, seconds in parts.items()]
    command = [sys.executable, "-m", "benchmarks", "gpu", "--worker", *map(str, share)]
    command += ["--out", str(out), "--budget", *budget, "--only", *parts, "--ops", *ops]
    return [*command, *["--quick"] * quick]


def check_in_parallel(ops: Sequence[str], path: Path, seconds: float) -> str | None:
    """The checks, by several processes that each take a share of every op's samples.

    Begins the result file at `path`, as a run whose other parts are yet to come.

    Returns:
        How many of the processes never began, for people; None if all did.
    """
    count = min(_CHECKERS, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(count) as pool:

        def check(i: int) -> dict[str, Any]:
            out, parts = Path(folder, str(i)), {"checks": seconds}
            command = worker_command(ops, out, parts, quick=False, share=(i, count))
            found = out / path.name
            supervise(command, found, seconds + _GRACE)
            return json.loads(found.read_text()) if found.exists() else {}

        begun = [share for share in pool.map(check, range(count)) if share]
    if begun:
        run.save(merged(begun), path)
    missing = count - len(begun)
    return f"{missing} of {count} processes never began" if missing else None


def merged(shares: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result of what processes found that checked side by side."""
    result = {**shares[0], "started": time.time()}
    result["checks"] = [check for share in shares for check in share["checks"]]
    for kind in ("failed", "not run"):
        result[kind] = {name: why for share in shares for name, why in share[kind].items()}
    return result


def build() -> str | None:
    """Build the CUDA module if it is missing; None, or why there is none."""
    missing = native.cuda.unavailable()
    if missing is None:
        return None
    if importlib.util.find_spec("pybind11") is None:
        return f"{missing}; to build it, pip install 'pybind11>=2.13'"
    print("building the native modules", flush=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "setup.py build_ext took more than five minutes"
    if done.returncode != 0:
        return f"setup.py build_ext failed: {done.stderr.strip()[-500:]}"
    return None if list(ROOT.glob("bitdance_kernels/_cuda*.so")) else f"{missing}; is nvcc there?"


def supervise(command: Sequence[str], path: Path, seconds: float) -> None:
    """Run `command` until it has done all steps of the result file at `path`.

    A process that dies, or hangs in a step, costs that step: it is recorded as failed and the
    command is started again. After `seconds` the run ends whatever it was doing.
    """
    before = os.environ.get("PYTHONPATH")
    python_path = str(ROOT) if before is None else os.pathsep.join([str(ROOT), before])
    environment = {**os.environ, "PYTHONPATH": python_path}
    end = time.monotonic() + seconds
    crashes = 0
    while time.monotonic() < end:
        process = subprocess.Popen(command, env=environment)
        stuck = False
        while process.poll() is None and not stuck:
            time.sleep(_POLL)
            stuck = time.monotonic() > end or _age(path) > _GRACE + seconds / 4
        if stuck:
            process.kill()
        status = process.wait()
        if status == 0:
            return
        crashes = _blame(path, "hung" if stuck else f"ended with status {status}", crashes)
        if crashes > 2:
            return


def _age(path: Path) -> float:
    """Seconds since the last step of the run began or ended."""
    return time.time() - path.stat().st_mtime if path.exists() else 0.0


def _blame(path: Path, how: str, crashes: int) -> int:
    """Record the step that its process did not survive; counts processes that did nothing."""
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    step = result.get("doing")
    if step is None:
        return 0 if result.get("done") and how == "ended with status 3" else crashes + 1
    result["failed"][step] = f"the process {how} in this step"
    result["done"].append(step)
    result["doing"] = None
    run.save(result, path)
    return 0


def condensed(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with the checks that passed as their number by op, backend and kind."""
    passed: dict[str, int] = {}
    for check in result["checks"]:
        if check["wrong"] is None:
            name = f"{check['op']}, {check['backend']}, {check['check']}"
            passed[name] = passed.get(name, 0) + 1
    wrong = [check for check in result["checks"] if check["wrong"] is not None]
    return {**result, "checks": wrong, "passed": dict(sorted(passed.items()))}


def summary(result: Mapping[str, Any], path: Path) -> int:
    """Print what failed; returns the exit status."""
    failures = [check for check in result["checks"] if check["wrong"]]
    for check in failures:
        print(f"FAILED {check['op']} {check['backend']} {check['check']}: {check['wrong']}")
    for name, text in result["failed"].items():
        print(f"ERROR {name}: {text.strip().splitlines()[-1]}")
    for name, why in result["not run"].items():
        print(f"not run: {name}: {why}")
    print(f"{len(result['checks'])} checks, {len(failures)} failed; {path}")
    return 1 if failures or result["failed"] else 0
