"""``python -m benchmarks run`` and ``cpu``: this CPU, against what users would pick instead.

Everything that is compared takes turns, so that a change of the machine's speed meets all alike,
and so do the loops in C that bound it. On one thread the clock is the processor's.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import limits, machine, products, tables, timing
from benchmarks.model import Comparison, decode, int8, paths, quantizer, recipes, start, training
from benchmarks.shapes import Bench, Timing
from bitdance.cli.heap import keep_freed_memory
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.sampling import graphs
from bitdance_kernels._dispatch.backends import BackendError
from bitdance_kernels.testing import Call, Case, check_backend

CPU = torch.device("cpu")
MODELS: dict[str, Callable[[], Iterator[Comparison]]] = {
    "decoder": decode.comparisons,
    "int8": int8.comparisons,
    "quantizer": quantizer.comparisons,
    "training": lambda: itertools.chain(training.comparisons(), recipes.comparisons()),
}
PARTS = ("start", "images", *MODELS, "ops")

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


def new_result() -> Result:
    """A run of which nothing is measured yet.

    It is plain data: "machine", "limits", "wrong" (findings of the gate), "skipped" and
    "not timed" (backend or peer -> reason), "rows" of ops, "models" (rows too) and "images".
    """
    result: Result = {"machine": machine.describe(CPU, 1), "limits": {}, "wrong": []}
    return result | {"skipped": {}, "not timed": {}, "rows": [], "models": [], "images": []}


def add(result: Result, bench: Bench, seconds: float, backends: Sequence[str] = ()) -> None:
    """Check the op and time every CPU shape for `seconds`; a wrong op is not timed.

    Each is timed as users call it, and by the names of `backends`.
    """
    result["limits"] = result["limits"] or limits.measure()
    reasons = _reasons(bench)
    able = [name for name, why in reasons.items() if why is None]
    result["skipped"] |= {f"{bench.name}: {name}": why for name, why in reasons.items() if why}
    wrong = gate(bench, [name for name in able if name != "reference"])
    result["wrong"] += wrong
    for shape in bench.timings if able and not wrong else ():
        if "cpu" in shape.devices:
            _add_shape(result, bench, shape, seconds, [b for b in backends if b in able])


def _reasons(case: Case) -> dict[str, str | None]:
    """For each backend of the op None if it can run a sample, or why not the first one."""
    reasons: dict[str, str | None] = dict.fromkeys(case.kernel_op.backends, "")
    for call in case.samples(CPU):
        unable = [name for name, why in reasons.items() if why is not None]
        for name, why in runnable(case, call, unable).items() if unable else ():
            reasons[name] = why and (reasons[name] or why)
    return reasons


def _add_shape(
    result: Result, bench: Bench, shape: Timing, seconds: float, backends: Sequence[str]
) -> None:
    chosen = next(
        name
        for name in bench.kernel_op.order["cpu"]
        if runnable(bench, shape.make(CPU), [name])[name] is None
    )
    timed = timing.chosen_and_peers(bench, chosen, backends, backward=shape.backward)
    with torch.inference_mode():
        rows, failed = timing.time_cpu(chosen, timed, shape, seconds)
    torch.compiler.reset()
    common = {"op": bench.name, "shape": shape.name, "device": "cpu"}
    result["rows"] += [{**common, **row} for row in rows]
    where = f"{bench.name}, {shape.name}"
    result["not timed"] |= {f"{where}: {name}": why for name, why in failed.items()}


def compare(result: Result, comparison: Comparison, seconds: float, threads: int = 1) -> None:
    """Add the rows of a comparison on so many threads, each held against its limit."""
    what, shape, ways, flops, weight, memory = comparison
    bound = None
    if flops and limits.unavailable() is None:
        bound = limits.multiply_adds(flops / threads)
        if weight is not None:
            bound = limits.of(weight.nbytes, 0, flops / threads, [weight])
    rows, failed = timing.compare(ways, seconds, bound=bound, threads=threads)
    for row in rows if memory else ():
        row["peak_mb"] = timing.peak_bytes(ways[row["name"]]) / 1e6
    shape += f", {threads} threads" * (threads > 1)
    common = {"op": what, "shape": shape, "device": "cpu", "threads": threads}
    rates = {"gb_s": 0.0 if weight is None else weight.nbytes, "gflop_s": flops}
    result["models"] += [
        {**common, **row, **{k: n / row["median_us"] / 1e3 for k, n in rates.items()}}
        for row in rows
    ]
    result["not timed"] |= {f"{what}, {shape}: {name}": why for name, why in failed.items()}


def report(result: Result) -> int:
    """Print the tables and what is missing from them; returns the exit status."""
    print(tables.section("", result))
    for name, reason in {**result["skipped"], **result["not timed"]}.items():
        print(f"not timed: {name}: {reason}")
    for text in result["wrong"]:
        print(f"WRONG, so not timed: {text}")
    return 1 if result["wrong"] or not (result["rows"] or result["models"]) else 0


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
        out: the result file, written after every step; parts that are not run stay as they are.
        parts: names among PARTS.
        threads: decoding and whole images take so many too; all else takes one.
        quick: few rounds.
    """
    keep_freed_memory()  # else the turn that asks the system for pages pays for all
    result = new_result() | {"failed": {}}
    seconds = 0.0 if quick else 1.5
    steps: dict[str, Callable[[], None]] = {"limits": functools.partial(_limits, result)}
    if "start" in parts:
        steps["start"] = lambda: result["models"].extend(start.rows(1 if quick else 3))
    for count in sorted({1, threads}):
        for batch in _BATCHES if "images" in parts else ():
            images = functools.partial(_images, result, batch, count, quick)
            steps[f"images: batch {batch}, threads {count}"] = images
        for name in MODELS:
            if name in parts and (count == 1 or name == "decoder"):
                model = functools.partial(_model, result, name, count, 2 * seconds)
                steps[f"{name}, threads {count}"] = model
    if "ops" in parts:  # last: the process stays with one thread
        steps["one thread"] = functools.partial(machine.pin, 1)
        steps |= {f"ops: {b.name}": functools.partial(add, result, b, seconds) for b in benches}
    begin = time.monotonic()
    for name, step in steps.items():
        try:
            step()
        except Exception:
            result["failed"][name] = traceback.format_exc()
        save(result, out)
        state = "failed" if name in result["failed"] else "done"
        print(f"{time.monotonic() - begin:6.1f} s  {name:<40} {state}", flush=True)
    for text in result["wrong"]:
        print(f"WRONG {text}")
    for name, text in result["failed"].items():
        print(f"ERROR {name}: {text.strip().splitlines()[-1]}")
    return 1 if result["wrong"] or result["failed"] else 0


def _limits(result: Result) -> None:
    result["limits"] = limits.measure()


def _model(result: Result, name: str, threads: int, seconds: float) -> None:
    torch.set_num_threads(threads)
    for comparison in MODELS[name]():
        compare(result, comparison, seconds, threads)
    torch.compiler.reset()


def _images(result: Result, batch: int, threads: int, quick: bool) -> None:
    """The bundled model: its paths and its multiply-adds alone, in turns."""
    torch.set_num_threads(threads)
    pipeline = BitDancePipeline.from_pretrained(_BUNDLED)
    rounds, seconds = (1, 0.0) if quick else (15, 10.0)
    name = f"{_BUNDLED}, {threads} thread{'s' * (threads > 1)}"
    steps = pipeline.num_inference_steps
    rows = images(name, pipeline.model, steps, batch, rounds=rounds, seconds=seconds)
    result["images"] += [row | {"threads": threads} for row in rows]


def images(
    name: str, model: Any, steps: int, batch: int, *, rounds: int, seconds: float
) -> list[Result]:
    """A record for each path of the model and one for its multiply-adds alone.

    At most so many rounds, of which none begins after `seconds`; `steps` a patch.
    """
    config, threads = model.config, torch.get_num_threads()
    labels = torch.arange(batch) % config.num_classes
    tokens = paths.random_tokens(model, batch)
    ways = [paths.library(model, steps), paths.published(model, steps)]
    flops = [
        products.flops(lambda: ways[0].sample(labels, None)),
        products.flops(lambda: ways[0].decode(tokens)),
    ]
    trunk = paths.captured_trunk_step(model, batch)
    clock = paths.Clock(CPU)
    times: dict[str, list[Result]] = {way.name: [] for way in ways}
    alone: list[limits.Limit] = []
    if limits.unavailable() is None:
        alone = [limits.multiply_adds(count / threads) for count in flops]
        times[tables.BOUND] = []
    for way in ways:  # first calls load modules and allocate, later ones capture what is repeated
        for _ in range(1 + graphs.CALLS_BEFORE_CAPTURE if way.trunk is None else 1):
            paths.sampling(way, labels, config.ar_steps, 0.0, max_steps=1)
            paths.decoding(way, tokens)
    begin = time.perf_counter()
    for count in range(rounds):
        if count >= 3 and time.perf_counter() - begin > seconds:
            break
        for way in ways:
            once = paths.sampling(way, labels, config.ar_steps, float("inf"))
            if way.trunk is None:
                once["trunk"] = config.ar_steps * trunk()
            times[way.name].append(once | {"decoder": paths.decoding(way, tokens)})
        if alone:
            loops = [limit.scale * clock.seconds(limit.run) for limit in alone]
            times[tables.BOUND].append(dict(zip(("sampling", "decoder"), loops, strict=True)))
    common = {"model": name, "batch": batch, "device": "cpu", "steps": steps}
    common["gflop"] = sum(flops) / batch / 1e9
    return [{**common, "path": path, **paths.figures(t, batch)} for path, t in times.items()]
