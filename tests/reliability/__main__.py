"""``python -m tests.reliability``: run suites, store their figures, fill the table.

Status: 0 all kept, 1 a suite failed or a figure at full size misses its goal, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from tests.reliability import runs, table


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = _parser()
    options = parser.parse_args(arguments)
    suites = {suite.name: suite for suite in runs.find()}
    unknown = [name for name in options.suites if name not in suites]
    if unknown:
        parser.error(f"no suite {unknown[0]!r}; there are {', '.join(suites)}")
    chosen = [suites[name] for name in options.suites or suites]
    try:
        runs.load(options.out)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        return _list(chosen)
    if options.table:
        text = options.page.read_text()
        outcomes = runs.load(options.out)
        options.page.write_text(table.filled(text, list(suites.values()), outcomes))
        return 0
    origin = runs.here()  # once: the figures of the first suite are a change of the checkout
    return max([_run(suite, options, origin) for suite in chosen], default=0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="by default all")
    parser.add_argument(
        "--scale", type=_positive, default=1.0, help="1 (default) for the figures of the promises"
    )
    parser.add_argument(
        "--out", type=Path, default=runs.RESULTS, metavar="FILE",
        help="figures, written after each suite; those of other suites stay in it",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=_positive, default=3 * 3600.0, metavar="SECONDS",
        help="a suite that takes longer is killed and has failed (default: 3 hours)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="suites and promises, nothing runs")
    parser.add_argument("--table", action="store_true", help="only fill the table of the page")
    parser.add_argument("--page", type=Path, default=table.PAGE, help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def _list(suites: list[runs.Suite]) -> int:
    for suite in suites:
        print(suite.name)
        for promise in suite.promises:
            goal = f"{'at most ' * promise.at_most}{promise.goal:g} {promise.unit}"
            print(f"  {promise.name}: {goal} ({promise.where}). {promise.text}")
    return 0


def _run(suite: runs.Suite, options: argparse.Namespace, origin: dict[str, Any]) -> int:
    """Run one suite and store what comes; 1 if it failed or a figure misses its goal."""
    print(f"{suite.name} ...", flush=True)
    outcome = runs.run(suite, options.scale, options.limit, origin=origin)
    runs.store(options.out, suite.name, outcome)
    print(f"{suite.name}: {'failed' if outcome['failure'] else 'done'}, {outcome['seconds']} s")
    if outcome["failure"]:
        print(outcome["failure"], flush=True)
        return 1
    missed = 0
    for promise in suite.promises:
        found = outcome["figures"].get(promise.name)
        kept = found is None or options.scale < 1 or runs.is_kept(promise, found["figure"])
        missed |= not kept
        figure = "not measured" if found is None else f"{found['figure']:g} {promise.unit}"
        print(f"  {promise.name}: {figure}{'' if kept else ', goal not reached'}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
