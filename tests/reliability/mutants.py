"""Faults planted one at a time: the tests named for each of them must fail.

A test that cannot fail proves nothing. ``tests/mutants`` holds some two hundred single faults in
C++, in CUDA device code that runs emulated, in Triton, references, checks, samplers, caches,
loading, training, data and serving; among them every fault that was found in the library by
attacking it, planted again. ``python -m tests.mutants`` plants each in a copy of the checkout,
builds what depends on it, and runs the narrowest tests that notice it. A fault that no test can
notice stands there with the proof.

All of them are run by ``make mutants``. With every change a tenth of those that take seconds runs,
chosen by the text of the files that they change; and all are held against the code: each anchor
occurs once, and each test exists. What is planted is what somebody has thought of: that all
are noticed says nothing about faults of another kind. CUDA code for a card's host is not mutated,
and neither is what a card alone can show.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.mutants import records, runner
from tests.mutants.copies import Copy
from tests.mutants.records import Mutant
from tests.reliability.promise import Promise

__all__ = ["PARTS", "PROMISES", "measure", "part_of_now", "run_part"]

ROOT = Path(__file__).parent.parent.parent
PARTS = 10
WORKERS = 2  # faults at a time where the suite runs alone
_NOTICED = (runner.CAUGHT, runner.HUNG)

PROMISES = (
    Promise(
        name="mutants caught",
        text="A planted fault fails a test that is named for it",
        goal=200,
        unit="faults",
        where="nightly",
    ),
    Promise(
        name="mutants survived",
        text="No planted fault passes its tests, or has lost its place in the code",
        goal=0,
        unit="faults",
        where="nightly",
        at_most=True,
    ),
    Promise(
        name="attacks found again",
        text="A fault that an attack on the library had found fails a suite that knows nothing of "
        "it",
        goal=34,
        unit="faults",
        where="nightly",
    ),
    Promise(
        name="mutants in place",
        text="Each planted fault has its place in the code, and its tests exist",
        goal=200,
        unit="faults",
        where="CI",
    ),
)


def measure(scale: float) -> Mapping[str, float]:
    """Plant faults; at scale 1 all of them, below it evenly spaced ones.

    Raises:
        AssertionError: a record does not fit the code, or a fault is noticed by no test; the
            message names the faults, and how to repeat one.
    """
    mutants = records.load()
    problems = records.problems(mutants, ROOT)
    assert not problems, "\n".join(problems)
    step = max(1, round(1 / scale))
    results = _run(mutants[::step], WORKERS)
    caught = sum(result.outcome in _NOTICED for result in results)
    again = _run(records.without_own_tests(mutants)[::step], WORKERS)
    figures = {
        "mutants caught": caught, "mutants survived": 0, "mutants in place": len(mutants),
        "attacks found again": sum(result.outcome in _NOTICED for result in again),
    }  # fmt: skip
    return {name: float(figure) for name, figure in figures.items()}


def part_of_now(mutants: Sequence[Mutant]) -> int:
    """Number of the part to run with this state of the code, from 1 to `PARTS`.

    It follows from the text of the files that are mutated: one checkout always has the same part,
    and most changes have another.
    """
    digest = hashlib.sha256()
    for name in sorted({mutant.file for mutant in mutants}):
        digest.update((ROOT / name).read_bytes())
    return 1 + int.from_bytes(digest.digest()[:8], "big") % PARTS


def run_part(part: int) -> list[runner.Result]:
    """Plant the quick faults of a part, trusting that the tests pass without them.

    Raises:
        AssertionError: one of them is noticed by no test.
    """
    quick = [mutant for mutant in records.load() if mutant.quick]
    return _run(records.part_of(quick, part, PARTS))


def _run(mutants: Sequence[Mutant], workers: int = 1) -> list[runner.Result]:
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(Copy(ROOT, ROOT / "build")) for _ in range(workers)]
        results = runner.run(mutants, *copies, report=print)
    failures = [result for result in results if result.outcome in runner.FAILURES]
    repeat = " ".join(result.mutant.name for result in failures)
    lines = "\n".join(map(str, failures))
    assert not failures, f"{lines}\nto repeat: python -m tests.mutants {repeat}"
    return results
