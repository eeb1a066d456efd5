"""Calls of C++ kernels from several threads at a time; see ``thread_sanitizer``."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random
from unittest import mock

import torch

from bitdance_kernels import BackendError
from bitdance_kernels.binary.lfq_entropy import cpu as lfq_entropy_cpu
from bitdance_kernels.binary.lfq_quantize import cpu as lfq_quantize_cpu
from bitdance_kernels.testing import cpu_isa, cpu_isas, cpu_threads
from tests.reliability.calls import Outcome, compare_outcomes, draw_case, outcome
from tests.reliability.ragged import Ragged

__all__ = ["CALLERS", "run_batch"]

CALLERS = 4
"""Threads that call at a time."""
MAX_THREADS = 8
_BATCH = 48


@dataclass(frozen=True)
class _Case:
    number: int
    name: str
    call: Ragged
    threads: int
    gradients: bool
    expected: Outcome


def run_batch(first: int, count: int, isa: str) -> int:
    """Run cases by number, each in every caller with the same tensors, and each alone before.

    Args:
        first: number of the first case.
        count: number of cases.
        isa: instruction set of the kernels.

    Returns:
        The number of calls in threads.

    Raises:
        AssertionError: a call gives other bits than alone.
    """
    with ExitStack() as stack:
        stack.enter_context(cpu_isa(isa))
        for module in (lfq_entropy_cpu, lfq_quantize_cpu):  # so that small calls are divided too
            stack.enter_context(mock.patch.object(module, "_GRAIN", 1))
        cases = list(filter(None, (_alone(number) for number in range(first, first + count))))
        with ThreadPoolExecutor(CALLERS) as pool:
            return sum(pool.map(lambda caller: _run_all(cases, first + caller), range(CALLERS)))


def _alone(number: int) -> _Case | None:
    """A case with what it gives alone; None if C++ does not take it."""
    random = Random(number)
    name, call = draw_case(number, random)
    threads, gradients = 1 + random.randrange(MAX_THREADS), bool(call.leaves) and number % 2 == 0
    try:
        with cpu_threads(threads):
            return _Case(number, name, call, threads, gradients, outcome(call, gradients))
    except BackendError:
        return None


def _run_all(cases: list[_Case], seed: int) -> int:
    """Run the cases in an order of this caller."""
    for case in Random(seed).sample(cases, len(cases)):
        torch.set_num_threads(case.threads)  # of this thread alone
        found = outcome(case.call, case.gradients)
        compare_outcomes(found, case.expected, f"case {case.number}, {case.name}, in threads")
    return len(cases)


def main() -> None:
    """Run batches; prints the number of calls."""
    parser = argparse.ArgumentParser(description="Run calls in several threads at a time.")
    parser.add_argument("calls", type=int, help="minimum of calls")
    calls, first, isas = 0, 0, cpu_isas()
    goal = parser.parse_args().calls
    while calls < goal:
        count = min(_BATCH, -(-(goal - calls) // CALLERS) + 1)
        calls += run_batch(first, count, isas[first // _BATCH % len(isas)])
        first += count
    print(f"calls: {calls}", flush=True)


if __name__ == "__main__":
    main()
