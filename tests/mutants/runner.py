"""Plant faults one after the other, and tell which of them the tests notice."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.mutants.copies import BuildError, Copy, TestRun
from tests.mutants.records import Mutant

__all__ = [
    "BROKEN",
    "CAUGHT",
    "EQUIVALENT",
    "FAILURES",
    "HUNG",
    "LIMIT",
    "LOST",
    "NOT_RUN",
    "SURVIVED",
    "Result",
    "UnmutatedError",
    "check_unmutated",
    "run",
    "summary",
]

LIMIT = 300.0
"""Seconds that the tests of a fault may take; a fault may make them wait for ever."""

CAUGHT, HUNG, EQUIVALENT, NOT_RUN = "caught", "caught, hung", "equivalent", "not run"
SURVIVED, LOST, BROKEN = "survived", "anchor lost", "broken"
FAILURES = (SURVIVED, LOST, BROKEN)
"""Outcomes that somebody has to look at."""

_TESTS_FAILED = 1  # exit status of pytest


class UnmutatedError(RuntimeError):
    """Tests of the faults fail without any; the message is the end of what pytest printed."""


@dataclass(frozen=True)
class Result:
    """What became of a fault.

    Attributes:
        mutant: the fault.
        outcome: "caught"; "caught, hung" (the tests took too long); "equivalent", which is not run;
            "not run" (all tests are skipped on this machine, or there is no compiler); "survived";
            "anchor lost"; "broken" (the code does not compile, or a test cannot be collected).
        seconds: time it took.
        detail: the test that noticed it, or why there is none.
    """

    mutant: Mutant
    outcome: str
    seconds: float
    detail: str

    def __str__(self) -> str:
        return f"{self.outcome:<12}  {self.seconds:5.1f} s  {self.mutant.id}  {self.detail}"


def check_unmutated(copy: Copy, mutants: Sequence[Mutant], limit: float = 10 * LIMIT) -> None:
    """Check that the tests of faults pass in a copy without any: otherwise they prove nothing.

    Raises:
        UnmutatedError: one fails, cannot be collected or hangs.
    """
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    if not tests:
        return
    done = copy.run(tests, limit, first_failure=False)
    if done.status != 0:
        raise UnmutatedError(f"tests fail without a fault:\n{done.output}")


def run(
    mutants: Sequence[Mutant],
    *copies: Copy,
    limit: float = LIMIT,
    report: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Plant each fault in a copy of the checkout, run its tests, and take it out again.

    Args:
        mutants: the faults; those that take longest begin.
        copies: copies, of which each has one fault at a time.
        limit: seconds that the tests of a fault may take.
        report: called with each result.

    Returns:
        The results, in the order of the faults.
    """
    cost = {"": 0, "cpu": 1, "cuda": 2}
    waiting = deque(sorted(mutants, key=lambda mutant: (-cost[mutant.rebuild], not mutant.slow)))
    results: dict[str, Result] = {}

    def work(copy: Copy) -> None:
        while waiting:
            try:
                mutant = waiting.popleft()
            except IndexError:  # another copy has the last one
                return
            begin = time.monotonic()
            outcome, detail = _outcome(mutant, copy, limit)
            results[mutant.id] = Result(mutant, outcome, time.monotonic() - begin, detail)
            report(results[mutant.id])

    with ThreadPoolExecutor(len(copies)) as pool:
        list(pool.map(work, copies))
    return [results[mutant.id] for mutant in mutants]


def _outcome(mutant: Mutant, copy: Copy, limit: float) -> tuple[str, str]:
    path = copy.path / mutant.file
    if not path.is_file() or mutant.planted(path.read_text(encoding="utf-8")) is None:
        return LOST, f"the anchor must occur once in {mutant.file}"
    if mutant.equivalent:
        return EQUIVALENT, mutant.equivalent
    if mutant.rebuild:
        try:
            copy.prepare(mutant.rebuild)
        except BuildError as error:
            return NOT_RUN, f"the module cannot be built here: {_last_line(str(error))}"
    try:
        with copy.planted(mutant):
            return _judge(copy.run(mutant.tests, limit))
    except BuildError as error:
        return BROKEN, f"it does not compile: {error}"


def _judge(done: TestRun) -> tuple[str, str]:
    if done.status is None:
        return HUNG, "the tests took too long"
    if done.status < 0:
        return CAUGHT, f"signal {-done.status} ended the tests"
    if done.status == _TESTS_FAILED and done.failed:
        return CAUGHT, done.failed[0]
    if done.status != 0:
        return BROKEN, f"pytest ended with status {done.status}: {done.output}"
    if not done.ran:
        return NOT_RUN, "all its tests are skipped here"
    return SURVIVED, f"{done.ran} tests pass"


def summary(results: Sequence[Result]) -> str:
    """One line: the number of mutants of each outcome, and the time."""
    counts = Counter(result.outcome for result in results)
    parts = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    seconds = sum(result.seconds for result in results)
    return f"{len(results)} mutants: {parts or 'none'}; {seconds / 60:.1f} min"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
