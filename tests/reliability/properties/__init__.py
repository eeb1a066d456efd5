"""Properties: what holds for every input, tried on thousands that Hypothesis draws.

Statements that need no expected value: inverses, sums of parts, permutations, batches against
single rows, exact products of integers, masks as sets, noise as a function of its sample, files
against what was written. Those of ops draw a backend and an instruction set too. Each property is
tried on 60 cases in CI and on 1,500 nightly; the least case that fails is printed with its seed.
Tests with ``@given`` elsewhere in the suite are part of the nightly run, by the same profile
(tests/profiles.py). Backends of cards are not drawn: their kernels run in the contract suite, in
Triton's interpreter, and on a card.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.profiles import CASES
from tests.reliability.promise import Promise
from tests.reliability.properties import (
    attention,
    bits,
    formats,
    refusals,
    rows,
    sampling,
    training,
)
from tests.reliability.properties._for_all import Property

__all__ = ["PROMISES", "PROPERTIES", "measure"]

PROPERTIES: tuple[Property, ...] = tuple(
    each
    for module in (bits, attention, rows, sampling, training, formats, refusals)
    for each in module.PROPERTIES
)

PROMISES = (
    Promise(
        "properties", "Properties that held in every case drawn", 15, "properties", "nightly"
    ),
    Promise(
        "cases of properties", "Cases in which they held, 1,500 for each", 22_500, "cases",
        "nightly",
    ),
    Promise(
        "property tests of single ops",
        "Tests with @given beside the ops that pass with 1,500 cases",
        9, "tests", "nightly",
    ),
)  # fmt: skip

ROOT = Path(__file__).parents[3]


def measure(scale: float) -> Mapping[str, float]:
    """Try every property, and the tests with ``@given`` of the suite, on ``1500 * scale`` cases.

    Raises:
        AssertionError: a property does not hold, with the least case and the seed.
    """
    cases = math.ceil(CASES["nightly"] * scale)
    held = [each.run(cases) for each in PROPERTIES]
    return {
        "properties": len(held),
        "cases of properties": sum(held),
        "property tests of single ops": _tests_elsewhere(scale),
    }


def _tests_elsewhere(scale: float) -> int:
    """Number of tests with ``@given`` that pass; with the profile "ci" below the full scale."""
    profile = "nightly" if scale >= 1 else "ci"
    command = [
        sys.executable, "-m", "pytest", "-m", "hypothesis", "-p", "no:xdist", "--timeout=0",
        f"--hypothesis-profile={profile}", "--ignore=tests/reliability", "tests",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    passed = re.search(r"(\d+) passed", done.stdout)
    if done.returncode != 0 or passed is None:
        raise AssertionError(f"profile {profile}: {done.stdout[-4000:]}{done.stderr[-2000:]}")
    return int(passed[1])
