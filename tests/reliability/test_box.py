"""Boxes hold what their cases do."""

import os
import signal
import time
from typing import Any

from tests.reliability.files import box
from tests.reliability.files.box import Died, boxed, staged


def _case(number: int) -> object:
    if number == 1:
        return bytearray(2 * box.MAX_BYTES)
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3:
        signal.setitimer(signal.ITIMER_PROF, 0.05)  # rather than ten seconds
        while True:
            pass
    if number == 4:
        time.sleep(1000)
    return number


def _boxes(cases: list[int]) -> list[Any]:
    return [*boxed(lambda i: _case(cases[i]), len(cases))]


def test_a_box_holds_what_its_cases_do() -> None:
    found = staged(_boxes, [0, 1, 5, 2, 3, 6])
    assert [found[i] for i in (0, 2, 5)] == [0, 5, 6], "the next cases run"
    assert found[1] == Died("it ended with status 1"), "MemoryError"
    assert found[3] == Died("it ended with SIGSEGV")
    assert found[4] == Died("it took more than 10 s")


def _waits() -> list[Any]:
    box._IDLE_SECONDS = 1
    return [*boxed(lambda i: _case(4 + i), 2)]


def test_a_case_that_waits_is_ended() -> None:
    assert staged(_waits) == [Died("it waits"), 5]


def test_errors_that_stand_for_too_little_memory() -> None:
    damaged = ValueError("damaged")
    damaged.__cause__ = MemoryError()
    assert box.exhausted(damaged)
    assert box.exhausted(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not box.exhausted(ValueError("damaged"))
