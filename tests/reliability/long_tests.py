"""Tests that are too long for every change: those with the marker ``nightly``.

They go end to end through what other tests hold in parts, or hold kernels in more ways than a
change needs. ``make test`` leaves them out; ``pytest --nightly`` runs them with all others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from tests.reliability.promise import Promise

PROMISES = (
    Promise("long tests", "Tests that are too long for every change pass", 40, "tests", "nightly"),
)

ROOT = Path(__file__).parent.parent.parent


def measure(scale: float) -> Mapping[str, float]:
    """How many pass; a small scale runs the first of them.

    Raises:
        AssertionError: one fails.
    """
    command = [sys.executable, "-m", "pytest", "--nightly", "-m", "nightly", "-q", "-x"]
    if (os.cpu_count() or 1) > 1:
        command += ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command += [f"--junitxml={report}", "tests" if scale == 1 else "tests/test_examples.py"]
        done = subprocess.run(command, cwd=ROOT, check=False)
        assert done.returncode == 0, f"exit status {done.returncode} of {' '.join(command[2:])}"
        cases = list(ElementTree.parse(report).iter("testcase"))
    return {"long tests": sum(case.find("skipped") is None for case in cases)}
