"""Planted faults fit the code, and a part of them is noticed by the tests that are named."""

import os
from collections import Counter

import pytest

from tests.mutants import records
from tests.reliability import mutants as suite
from tests.reliability.mutants import PARTS, PROMISES, ROOT

MUTANTS = records.load()


def test_every_anchor_occurs_once_and_every_test_exists():
    assert records.problems(MUTANTS, ROOT) == []


def test_there_are_as_many_as_promised_in_every_area():
    counts = Counter(mutant.area for mutant in MUTANTS if not mutant.equivalent)
    goal = next(promise.goal for promise in PROMISES if promise.name == "mutants caught")
    assert sum(counts.values()) >= goal
    assert min(counts.values()) >= 10
    assert len({mutant.file for mutant in MUTANTS}) > 80


def test_every_quick_fault_is_in_one_part():
    quick = [mutant for mutant in MUTANTS if mutant.quick]
    parts = [records.part_of(quick, part, PARTS) for part in range(1, PARTS + 1)]
    assert sorted(m.id for part in parts for m in part) == sorted(m.id for m in quick)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert 1 <= suite.part_of_now(MUTANTS) <= PARTS
    assert suite.part_of_now(MUTANTS) == suite.part_of_now(MUTANTS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_part_is_noticed(capfd):
    """Another part with most changes of the code; BITDANCE_MUTANTS_PART=3 repeats the third."""
    part = int(os.environ.get("BITDANCE_MUTANTS_PART", suite.part_of_now(MUTANTS)))
    with capfd.disabled():
        print(f"\npart {part} of {PARTS} of the planted faults (BITDANCE_MUTANTS_PART={part})")
    results = suite.run_part(part)
    assert len(results) >= 10
