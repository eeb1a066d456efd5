"""``python -m benchmarks``: list, run, cpu, gpu, model, report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import torch

from benchmarks import cpu, gpu, machine, plots, report
from benchmarks.gpu import parts
from benchmarks.model import packed_dataset, processes, quantization, serving
from benchmarks.shapes import Bench, all_benches

PROGRAMS: dict[str, Callable[[], dict[str, Any]]] = {
    "packed_dataset": packed_dataset.measure,
    "processes": processes.measure,
    "quantization": quantization.measure,
    "quantization_emoji": quantization.measure_emoji,
    "serving": serving.measure,
}
"""What gives figures; the others compare."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 done, 1 a check failed, 2 wrong usage or no card."""
    options = _parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", help="ops, backends here, shapes")
    listing.set_defaults(run=_list)

    one = commands.add_parser("run", help="check ops, then time them on this CPU")
    one.add_argument("ops", nargs="+", type=_bench, metavar="OP")
    one.add_argument("--backend", action="append", default=[], help="by its name, too")
    one.add_argument("--seconds", type=float, default=1.5, help="per shape")
    one.add_argument("--out", type=Path, help="also write the run as JSON")
    one.set_defaults(run=_run)

    host = commands.add_parser("cpu", help="check and time everything on this CPU")
    host.add_argument("--out", type=Path, required=True, metavar="FILE")
    host.add_argument(
        "--only", nargs="+", choices=cpu.PARTS, default=list(cpu.PARTS), metavar="PART",
        help=f"by default all: {', '.join(cpu.PARTS)}",
    )  # fmt: skip
    host.add_argument(
        "--threads", type=int, help="decoding and whole images take so many too (default: all)"
    )
    host.add_argument("--quick", action="store_true", help="short timings")
    host.set_defaults(run=_cpu)

    card = commands.add_parser("gpu", help="check and time a part of everything on a card")
    card.add_argument("--out", type=Path, required=True, metavar="DIR")
    card.add_argument(
        "--only", nargs="+", choices=parts.PARTS, metavar="PART",
        help="by default the first that has no result in DIR or benchmarks/results, or the oldest "
        "(dry: all); parts: "
        + ", ".join(parts.PARTS),
    )  # fmt: skip
    card.add_argument(
        "--budget", nargs="+", type=_budget, default=[], metavar="PART=SECONDS",
        help="seconds for a part (default: "
        + ", ".join(f"{name} {part.seconds:.0f}" for name, part in parts.PARTS.items()) + ")",
    )  # fmt: skip
    card.add_argument("--dry-run", action="store_true", help="the same code on the CPU")
    card.add_argument("--worker", nargs=2, type=int, metavar=("I", "N"), help=argparse.SUPPRESS)
    card.set_defaults(run=_gpu)
    for command in (host, card):
        command.add_argument("--ops", nargs="+", type=_bench, metavar="OP", help="only these ops")

    model = commands.add_parser("model", help="time one thing of the models")
    model.add_argument("program", choices=[*cpu.MODELS, *PROGRAMS])
    model.add_argument("--out", type=Path, metavar="FILE", help="also write the figures")
    model.set_defaults(run=_model)

    pages = commands.add_parser("report", help="tables and plots from the results")
    pages.add_argument("--results", type=Path, default=report.RESULTS, metavar="DIR")
    pages.add_argument("--plots", type=Path, metavar="DIR", help="also draw SVGs of each file")
    pages.add_argument(
        "--into", type=Path, nargs="+", default=[], metavar="FILE",
        help="put the tables where these Markdown files ask for them",
    )  # fmt: skip
    pages.set_defaults(run=_report)
    return parser


def _bench(name: str) -> Bench:
    benches = all_benches()
    if name not in benches:
        raise argparse.ArgumentTypeError(f"no op {name!r}; there are {', '.join(benches)}")
    return benches[name]


def _budget(text: str) -> tuple[str, float]:
    part, _, seconds = text.partition("=")
    if part not in parts.PARTS or not seconds.replace(".", "", 1).isdecimal():
        known = ", ".join(parts.PARTS)
        raise argparse.ArgumentTypeError(f"{text!r} is no PART=SECONDS; parts: {known}")
    return part, float(seconds)


def _list(_: argparse.Namespace) -> int:
    for name, bench in all_benches().items():
        print(name)
        for backend in bench.kernel_op.backends:
            print(f"  {backend:<10} {bench.kernel_op.unavailable(backend) or 'yes'}")
        for shape in bench.timings:
            print(f"  {' and '.join(shape.devices):<13} {shape.name}")
    return 0


def _run(options: argparse.Namespace) -> int:
    machine.pin(1)
    result = cpu.new_result()
    for bench in options.ops:
        cpu.add(result, bench, options.seconds, options.backend)
    if options.out:
        cpu.save(result, options.out)
    return cpu.report(result)


def _cpu(options: argparse.Namespace) -> int:
    benches = options.ops or list(all_benches().values())
    threads = options.threads or os.cpu_count() or 1
    return cpu.main(benches, options.out, options.only, threads=threads, quick=options.quick)


def _gpu(options: argparse.Namespace) -> int:
    if not options.dry_run and not torch.cuda.is_available():
        why = "this machine has no CUDA device that PyTorch can use"
        print(f"gpu: {why}; --dry-run goes through the same code on the CPU", file=sys.stderr)
        return 2
    due = parts.PARTS if options.dry_run else parts.due(options.out, report.RESULTS)[:1]
    only = options.only or due
    budget = dict(options.budget)
    chosen = {
        name: budget.get(name, gpu.DRY_RUN if options.dry_run else part.seconds)
        for name, part in parts.PARTS.items()
        if name in only
    }
    benches = options.ops or list(all_benches().values())
    worker = tuple(options.worker) if options.worker else None
    return gpu.main(benches, options.out, chosen, dry_run=options.dry_run, worker=worker)


def _model(options: argparse.Namespace) -> int:
    if options.program in cpu.MODELS:
        torch.set_num_threads(1)
        compared = cpu.new_result()
        for comparison in cpu.MODELS[options.program]():
            cpu.compare(compared, comparison, 3.0)
        if options.out:
            cpu.save(compared, options.out)
        return cpu.report(compared)
    figures = PROGRAMS[options.program]()
    result = {"machine": machine.describe(cpu.CPU, torch.get_num_threads()), **figures}
    print(json.dumps(result, indent=2))
    if options.out:
        cpu.save(result, options.out)
    return 0


def _report(options: argparse.Namespace) -> int:
    page = options.results
    try:
        runs = report.load(options.results)
        for page in options.into:
            page.write_text(report.filled(page.read_text(), runs))
    except (OSError, ValueError) as error:
        print(f"report: {page}: {error}", file=sys.stderr)
        return 2
    if not options.into:
        print(report.markdown(runs) if runs else f"no results in {options.results}")
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        for name, result in runs.items():
            plots.draw(result, options.plots / Path(name).stem)
    return 0


if __name__ == "__main__":
    sys.exit(main())
