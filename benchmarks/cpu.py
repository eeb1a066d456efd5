"""``python -m benchmarks run`` and ``cpu``: check and time on this CPU.

Ops on one thread against their baselines, whole images on all of them against the time of their
matrix products and convolutions alone. Everything that is compared takes turns, so that a change of
the machine's speed meets all alike, and the limits of the memory are measured in the same run.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, products, tables, timing
from benchmarks.model import paths
from benchmarks.shapes import Bench
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.sampling import graphs
from bitdance_kernels._dispatch.backends import BackendError
from bitdance_kernels.testing import Call, Case, check_backend

CPU = torch.device("cpu")
PARTS = ("ops", "images", "model")
PROGRAMS = ("head_sampling", "training", "decode")
"""Of ``python -m benchmarks model``, those whose figures a result has."""

_BUNDLED = "fashion"
_BATCHES = (1, 8)
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


def gate(case: Case, backends: Sequence[str]) -> list[str]:
    """What is wrong with these backends on the samples of the case; empty: nothing."""
    wrong = []
    for call in case.samples(CPU):
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
    wrong = gate(bench, able)
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


def main(
    benches: Sequence[Bench], out: Path, parts: Sequence[str], *, threads: int, quick: bool
) -> int:
    """Run the parts; returns the exit status: 0, or 1 if a check or a part failed.

    Args:
        benches: the ops.
        out: the result file, written after every step.
        parts: names among PARTS.
        threads: number for whole images; the ops take one.
        quick: short timings.
    """
    result = new_result(threads) | {"failed": {}, "model": {}, "images": []}
    result |= {"machine": machine.describe(CPU, 1), "image threads": threads}
    steps: dict[str, Callable[[], None]] = {}
    if "images" in parts:
        for batch in _BATCHES:
            images = functools.partial(_images, result, batch, threads, quick)
            steps[f"images: {_BUNDLED}, batch {batch}"] = images
    if "model" in parts:
        steps |= {f"model: {name}": functools.partial(_model, result, name, threads)
                  for name in PROGRAMS}  # fmt: skip
    if "ops" in parts:  # last: the process stays with one thread
        seconds = 0.3 if quick else 5.0
        steps["one thread"] = functools.partial(machine.pin, 1)
        steps |= {f"ops: {b.name}": functools.partial(add, result, b, seconds) for b in benches}
    start = time.monotonic()
    for name, step in steps.items():
        try:
            step()
        except Exception:
            result["failed"][name] = traceback.format_exc()
        save(result, out)
        state = "failed" if name in result["failed"] else "done"
        print(f"{time.monotonic() - start:6.1f} s  {name:<40} {state}", flush=True)
    for text in result["wrong"]:
        print(f"WRONG {text}")
    for name, text in result["failed"].items():
        print(f"ERROR {name}: {text.strip().splitlines()[-1]}")
    return 1 if result["wrong"] or result["failed"] else 0


def _images(result: Result, batch: int, threads: int, quick: bool) -> None:
    """The bundled model: its paths and its products alone, in turns."""
    torch.set_num_threads(threads)
    pipeline = BitDancePipeline.from_pretrained(_BUNDLED)
    rounds, seconds = (2, 0.0) if quick else (15, 45.0)
    steps = pipeline.num_inference_steps
    rows = images(_BUNDLED, pipeline.model, steps, batch, rounds=rounds, seconds=seconds)
    result["images"] += [row | {"threads": threads} for row in rows]


def images(
    name: str, model: Any, steps: int, batch: int, *, rounds: int, seconds: float
) -> list[Result]:
    """A record for each path of the model and one for its products alone.

    At most so many rounds, of which none begins after `seconds`; `steps` a patch.
    """
    config = model.config
    labels = torch.arange(batch) % config.num_classes
    tokens = paths.random_tokens(model, batch)
    fast = paths.library(model, steps)
    ways = [fast, paths.library(model, steps, "plain"), paths.published(model, steps)]
    weights = list(model.parameters())
    sampled = products.record(lambda: fast.sample(labels, None), weights)
    decoded = products.record(lambda: fast.decode(tokens), weights)
    trunk = paths.captured_trunk_step(model, batch)
    clock = paths.Clock(CPU)
    names = [*(way.name for way in ways), "products alone"]
    times: dict[str, list[Result]] = {name: [] for name in names}
    for way in ways:  # first calls load modules and allocate, later ones capture what is repeated
        for _ in range(1 + graphs.CALLS_BEFORE_CAPTURE if way.trunk is None else 1):
            paths.sampling(way, labels, config.ar_steps, 0.0, max_steps=1)
            paths.decoding(way, tokens)
    start = time.perf_counter()
    for count in range(rounds):
        if count >= timing.MIN_ROUNDS and time.perf_counter() - start > seconds:
            break
        for way in ways:
            once = paths.sampling(way, labels, config.ar_steps, float("inf"))
            if way.trunk is None:
                once["trunk"] = config.ar_steps * trunk()
            times[way.name].append(once | {"decoder": paths.decoding(way, tokens)})
        alone = {"sampling": lambda: products.replay(sampled),
                 "decoder": lambda: products.replay(decoded)}  # fmt: skip
        seconds_of = {part: clock.seconds(function) for part, function in alone.items()}
        times["products alone"].append(seconds_of)
    common = {"model": name, "batch": batch, "device": "cpu", "steps": steps}
    rows = [{**common, "path": path, **paths.figures(t, batch)} for path, t in times.items()]
    flops = products.flops([*sampled, *decoded])
    rows[-1] |= {"gflop": flops / batch / 1e9, "products": len(sampled) + len(decoded)}
    return rows


def _model(result: Result, name: str, threads: int) -> None:
    """The figures of a program of the models, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks", "model", name, "--out", str(out)]
        done = subprocess.run(
            command, cwd=machine.ROOT, env=environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"benchmarks model {name}: {done.stderr.strip()[-500:]}")
        result["model"][name] = json.loads(out.read_text())
