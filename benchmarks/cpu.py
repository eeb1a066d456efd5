"""``python -m benchmarks cpu``: check and time everything on this CPU.

Ops on one thread against their baselines, whole images on all of them against the time of their
matrix products and convolutions alone. Everything that is compared takes turns, so that a change of
the machine's speed meets all alike, and the limits of the memory are measured in the same run.
"""

from __future__ import annotations

import functools
import importlib.util
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

from benchmarks import machine, products, run
from benchmarks.model import measure, paths
from benchmarks.shapes import Bench
from bitdance.pipelines.class_conditional import BitDance
from bitdance.sampling import graphs

PARTS = ("ops", "images", "model")
MODEL_PARTS: dict[str, tuple[str, ...]] = {
    "head_sampling": ("--images", "8", "--rounds", "5"),
    "training": ("--rounds", "10"),
    "decode": (),
}
"""Modules of ``benchmarks.model`` and arguments: programs that write their figures with --json."""

_BUNDLED = "fashion"
_BATCHES = (1, 8)
_MIN_ROUNDS = 5
Result = dict[str, Any]


def main(
    cases: Sequence[Bench], out: Path, parts: Sequence[str], *, threads: int, quick: bool
) -> int:
    """Run the parts; returns the exit status: 0, or 1 if a check or a part failed.

    Args:
        cases: the ops.
        out: the result file, written after every step.
        parts: of PARTS.
        threads: of whole images; the ops take one.
        quick: short timings.
    """
    machine.pin(threads)  # before the limits are measured; one thread is pinned for each op
    result: Result = {
        "machine": machine.describe(run.CPU, 1),
        "image threads": threads,
        "limits": {},
        "wrong": [],
        "skipped": {},
        "not timed": {},
        "failed": {},
        "rows": [],
        "images": [],
        "model": {},
    }
    steps: list[tuple[str, Callable[[], None]]] = []
    if "images" in parts:
        steps += [
            (
                f"images: {_BUNDLED}, batch {b}",
                functools.partial(_images, result, b, threads, quick),
            )
            for b in _BATCHES
        ]
    if "model" in parts:
        steps += [
            (f"model: {m}", functools.partial(_model, result, m, threads)) for m in MODEL_PARTS
        ]
    if "ops" in parts:  # last: from here on the process is kept to one thread
        steps += [("limits", functools.partial(_limits, result))]
        steps += [(f"ops: {c.name}", functools.partial(_op, result, c, quick)) for c in cases]
    start = time.monotonic()
    for name, step in steps:
        try:
            step()
        except Exception:
            result["failed"][name] = traceback.format_exc()
        run.save(result, out)
        state = "failed" if name in result["failed"] else "done"
        print(f"{time.monotonic() - start:6.1f} s  {name:<40} {state}", flush=True)
    for text in result["wrong"]:
        print(f"WRONG {text}")
    for name, text in result["failed"].items():
        print(f"ERROR {name}: {text.strip().splitlines()[-1]}")
    return 1 if result["wrong"] or result["failed"] else 0


def _limits(result: Result) -> None:
    machine.pin(1)
    result["limits"] = machine.cpu_limits()


def _op(result: Result, case: Bench, quick: bool) -> None:
    """Check and time one op; a wrong backend is not timed."""
    seconds = 0.3 if quick else 5.0
    timed = run.run(case, seconds=seconds, limits=result["limits"])
    result["wrong"] += timed["wrong"]
    for key in ("skipped", "not timed"):
        result[key] |= {f"{case.name}: {name}": why for name, why in timed[key].items()}
    result["rows"] += timed["rows"]


def _images(result: Result, batch: int, threads: int, quick: bool) -> None:
    """The bundled model: its paths and its products alone, in turns."""
    torch.set_num_threads(threads)
    pipeline = BitDance.from_pretrained(_BUNDLED)
    model, steps = pipeline.model, pipeline.steps
    rounds = 2 if quick else 15
    result["images"] += images(
        result, _BUNDLED, model, steps, batch, rounds=rounds, seconds=0.0 if quick else 45.0
    )
    for row in result["images"]:
        row.setdefault("threads", threads)


def images(
    result: Result,
    name: str,
    model: Any,
    steps: int,
    batch: int,
    *,
    rounds: int,
    seconds: float,
) -> list[Result]:
    """A record for each path of the model and one for its products alone.

    Args:
        result: takes the reason under "not timed" where a path is not there.
        name: of the model.
        model: what samples and decodes.
        steps: denoising steps a patch.
        batch: images at a time.
        rounds: at most.
        seconds: after which no further round begins.
    """
    config = model.config
    labels = torch.arange(batch) % config.num_classes
    tokens = measure.random_tokens(model, batch)
    ways = [paths.fast(model, steps)]
    plain = paths.plain(model, steps, autocast=None)
    if isinstance(plain, str):
        result["not timed"][f"images: {name}: plain"] = plain
    else:
        ways.append(plain)
    ways.append(paths.published(model, steps, compiled=False, autocast=None))

    weights = list(model.parameters())
    sampled = products.record(lambda: ways[0].sample(labels, None), weights)
    decoded = products.record(lambda: ways[0].decode(tokens), weights)
    trunk = measure.captured_trunk_step(model, batch)
    times: dict[str, list[Result]] = {way.name: [] for way in ways}
    alone: list[Result] = []
    start = time.perf_counter()
    for way in ways:  # first calls load modules and allocate, later ones capture what is repeated
        for _ in range(1 + graphs.CALLS_BEFORE_CAPTURE if way.trunk is None else 1):
            measure.sampling(way, labels, config.ar_steps, 0.0, most=1)
            measure.decoding(way, tokens)
    for count in range(rounds):
        if count >= min(rounds, _MIN_ROUNDS) and time.perf_counter() - start > seconds:
            break
        for way in ways:
            once = measure.sampling(way, labels, config.ar_steps, float("inf"))
            if way.trunk is None:
                once["trunk"] = config.ar_steps * trunk()
            times[way.name].append(once | {"decoder": measure.decoding(way, tokens)})
        alone.append({"sampling": _seconds(sampled), "decoder": _seconds(decoded)})
    common = {"model": name, "batch": batch, "device": "cpu", "steps": steps}
    rows = [
        {**common, "path": way, **measure.figures(of_way, batch)} for way, of_way in times.items()
    ]
    flops = products.flops([*sampled, *decoded])
    limit = {**common, "path": "products alone", **measure.figures(alone, batch)}
    return [*rows, {**limit, "gflop": flops / batch / 1e9, "products": len(sampled) + len(decoded)}]


def _seconds(recorded: Sequence[products.Product]) -> float:
    begin = time.perf_counter()
    products.replay(recorded)
    return time.perf_counter() - begin


def _model(result: Result, name: str, threads: int) -> None:
    """The figures of a program of ``benchmarks.model``, in a process of its own."""
    module = f"benchmarks.model.{name}"
    if importlib.util.find_spec(module) is None:
        result["not timed"][f"model: {name}"] = "there is no such benchmark"
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "-m", module, *MODEL_PARTS[name], "--json", str(out)]
        done = subprocess.run(
            command, cwd=machine.ROOT, env=environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{module}: {done.stderr.strip()[-500:]}")
        result["model"][name] = json.loads(out.read_text())
