"""``python -m tests.reliability.child SUITE SCALE FILE``: a suite in a process of its own.

Writes the figures of the suite to FILE as a JSON object. The environment is that of the tests.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

from tests.reliability import promise


def main(arguments: list[str]) -> int:
    """Run one suite; 0 done, an exception otherwise."""
    name, scale, file = arguments
    importlib.import_module("tests.conftest")  # settings that have to precede other imports
    suite = importlib.import_module(f"tests.reliability.{name}")
    measure: promise.Measure = suite.measure
    figures = {key: float(value) for key, value in measure(float(scale)).items()}
    unknown = figures.keys() - {row.name for row in suite.PROMISES}
    if unknown:
        raise ValueError(f"{name}.measure: figures must be of PROMISES, got {sorted(unknown)}")
    wrong = sorted(key for key, value in figures.items() if not math.isfinite(value))
    if wrong:
        raise ValueError(f"{name}.measure: figures must be finite, got others for {wrong}")
    Path(file).write_text(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
