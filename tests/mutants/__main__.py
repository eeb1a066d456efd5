"""``python -m tests.mutants [NAME ...]``: plant faults, and report those that no test notices.

A NAME is a fault's or an area's, or a pattern such as 'cuda/*'; without any, all faults run. The
exit status is 1 where a fault survives, has lost its anchor or does not compile, and 2 where the
tests fail without a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

from tests.mutants import records, runner
from tests.mutants.copies import Copy

ROOT = Path(__file__).parent.parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    every = records.load()
    try:
        chosen = records.select(every, options.names)
        if options.suites:
            chosen = records.without_own_tests(chosen)
        if options.quick:
            chosen = [mutant for mutant in chosen if mutant.quick]
        if options.part:
            chosen = records.part_of(chosen, *options.part)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.list:
        for mutant in chosen:
            print(f"{mutant.id}: {mutant.what}")
        return 0
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(Copy(ROOT, ROOT / "build")) for _ in range(options.workers)]
        if not options.trust:
            try:
                runner.check_unmutated(copies[0], chosen)
            except runner.UnmutatedError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            print(f"without a fault all tests pass; {time.monotonic() - begin:.0f} s", flush=True)
        results = runner.run(
            chosen, *copies, limit=options.limit, report=lambda result: print(result, flush=True)
        )
    failures = [result for result in results if result.outcome in runner.FAILURES]
    if failures:
        print("\nNoticed by no test, or to be mended:")
        for result in failures:
            print(f"{result}\n    {result.mutant.what}")
    print(f"{runner.summary(results)}; {(time.monotonic() - begin) / 60:.1f} min in all")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description="Plant faults one at a time, and report those that no test notices.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="fault, area or pattern")
    parser.add_argument("--part", type=_part, metavar="K/N", help="part K of N of them")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="faults at a time (default: 1)"
    )
    parser.add_argument("--quick", action="store_true", help="those that take seconds each")
    parser.add_argument(
        "--suites", action="store_true",
        help="those that were found by attacking the library, without the tests named for them",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print them and run nothing")
    parser.add_argument(
        "--trust", action="store_true", help="do not run the tests without a fault first"
    )
    parser.add_argument(
        "--limit", type=float, default=runner.LIMIT, metavar="SECONDS",
        help="for the tests of a fault (default: %(default)g)",
    )  # fmt: skip
    return parser


def _part(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be like 3/10, got {text!r}")
    return int(part), int(parts)


if __name__ == "__main__":
    sys.exit(main())
