"""Kernels in threads under ThreadSanitizer, by a small program; ``make tsan`` takes them all."""

import pytest

from bitdance_kernels.testing import cpu_isas
from tests.emulated import needs_compiler
from tests.reliability import thread_calls, thread_sanitizer


@needs_compiler
def test_kernels_in_threads_have_no_race_and_a_planted_one_is_found(tmp_path):
    program = thread_sanitizer.compile_program(tmp_path)
    assert thread_sanitizer.run_program(program) == (0, [])
    status, races = thread_sanitizer.run_program(program, planted=True)
    assert status != 0
    assert any("adaln_norm" in race for race in races), races


@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
def test_calls_in_threads_give_what_each_gives_alone():
    assert thread_calls.run_batch(0, 40, cpu_isas()[-1]) >= 30 * thread_calls.CALLERS


def test_races_are_read_from_the_report():
    report = "x\nSUMMARY: ThreadSanitizer: data race a.cpp:1 in f\n" * 2
    assert thread_sanitizer.races(report) == ["data race a.cpp:1 in f"]
