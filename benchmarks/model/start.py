"""From the start of a process to the first picture, in parts."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks import machine, timing

_PROGRAM = """
import json, time
marks = [("", time.perf_counter(), time.process_time())]
def mark(name): marks.append((name, time.perf_counter(), time.process_time()))
import torch
mark("import torch"); torch.set_num_threads({threads})
import bitdance
from bitdance import BitDancePipeline
mark("import bitdance")
pipeline = BitDancePipeline.from_pretrained("fashion")
mark("load the bundled model")
pipeline(["sneaker"], seed=0); mark("first picture")
pipeline(["sneaker"], seed=0); mark("next picture")
print(json.dumps([(b[0], b[1] - a[1], b[2] - a[2]) for a, b in zip(marks, marks[1:])]))
"""


def rows(starts: int, threads: int = 1) -> list[dict[str, Any]]:
    """A row for each part of so many starts, in processor time."""
    command = [sys.executable, "-c", _PROGRAM.format(threads=threads)]
    parts: dict[str, list[timing.Turn]] = {}
    for _ in range(starts):
        done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, check=True)
        for name, *turn in json.loads(done.stdout.splitlines()[-1]):
            parts.setdefault(name, []).append(timing.Turn(*turn))
    common = {"op": "start", "name": "bitdance", "kind": "backend", "device": "cpu"}
    return [
        {**common, "shape": name, "threads": threads, **timing.spread([t.cpu for t in turns]),
         "wall_us": 1e6 * min(t.wall for t in turns), "gb_s": 0.0, "gflop_s": 0.0}
        for name, turns in parts.items()
    ]  # fmt: skip
