"""The steps of a run on a card, one after the other, in one process.

The state of a run is its journal, a file with a line for everything that was done, measured or
failed. So a process that dies in a step (a kernel that hangs or writes where it must not ends it)
loses that step alone, and another process goes on behind it.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.shapes import Bench

BROKEN = 3
"""Exit status of a process whose card no longer answers; another one can go on."""

Step = tuple[str, Callable[[], None]]
Result = dict[str, Any]
_LISTS = ("probes", "checks", "rows", "images", "ways", "training", "done")
_TABLES = ("limits", "failed", "not timed", "not run")


def write(path: Path, name: str, value: Any, key: str | None = None) -> None:
    """Write a line [name, key or null, value] to the journal; see `enter`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("\n" + json.dumps([name, key, value]))  # behind a line that broke off, too


def collect(*paths: Path) -> Result:
    """The result that the journals hold; a line that broke off counts for nothing."""
    result: Result = {name: [] for name in _LISTS} | {name: {} for name in _TABLES}
    result["doing"] = None
    for path in paths:
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                enter(result, *json.loads(line))
    return result


def enter(result: Result, name: str, key: str | None, value: Any) -> None:
    """Append `value` to the list `name`, or set it, or its item `key`."""
    if key is not None:
        result[name][key] = value
    elif name in _LISTS:
        result[name].append(value)
    else:
        result[name] = value


@dataclass
class Context:
    """What every part of a run works on.

    Attributes:
        benches: the ops.
        journal: of this process, and of those before it.
        parts: seconds for each part, in their order; a part may use what earlier ones left.
        dry_run: on the CPU, at tiny sizes.
        share: (i, n): of the checks' samples only those of the i-th of n processes.
    """

    benches: Sequence[Bench]
    journal: Path
    parts: Mapping[str, float]
    dry_run: bool = False
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        self.result = collect(self.journal)
        if "started" not in self.result:
            self.add("machine", machine.describe(self.device, torch.get_num_threads()))
            self.add("dry_run", self.dry_run)
            self.add("started", time.time())

    @property
    def device(self) -> torch.device:
        """The card, or the CPU in a dry run."""
        return torch.device("cpu" if self.dry_run else "cuda")

    @property
    def multiprocessors(self) -> int:
        """Multiprocessors of the card; 2 in a dry run."""
        if self.dry_run:
            return 2
        return int(torch.cuda.get_device_properties(self.device).multi_processor_count)

    def add(self, name: str, value: Any, key: str | None = None) -> None:
        """Add to the result and to the journal; see `enter`."""
        write(self.journal, name, value, key)
        enter(self.result, name, key, value)

    def left(self, part: str) -> float:
        """Seconds until `part` must be over."""
        names = list(self.parts)
        end = sum(self.parts[name] for name in names[: names.index(part) + 1])
        return end - (time.time() - self.result["started"])


def work(context: Context, steps: Mapping[str, Callable[[Context], Sequence[Step]]]) -> int:
    """Do all steps that are not done yet; returns 0, or BROKEN when the card stopped answering."""
    for part in context.parts:
        for name, function in steps[part](context):
            key = f"{part}: {name}"
            if key in context.result["done"]:
                continue
            if context.left(part) <= 0:
                context.add("not run", "the time was used up", key)
                context.add("done", key)
            elif not _do(context, key, function):
                return BROKEN
    return 0


def _do(context: Context, key: str, function: Callable[[], None]) -> bool:
    """One step; False when the card is unusable after it."""
    context.add("doing", key)
    error, usable = None, True
    try:
        function()
    except Exception:
        error = traceback.format_exc()
    try:
        if not context.dry_run:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.rand(1, device="cuda")
    # After an illegal access every call of this process fails, and after a capture that drew random
    # numbers and failed, every call that draws some.
    except RuntimeError as broken:
        error, usable = error or f"{type(broken).__name__}: {broken}", False
    if error:
        context.add("failed", error, key)
    context.add("done", key)
    context.add("doing", None)
    checks = context.result["checks"]
    wrong = sum(check["step"] == key and check["wrong"] is not None for check in checks)
    state = "failed" if error else f"{wrong} checks failed" if wrong else "done"
    print(f"{time.time() - context.result['started']:6.1f} s  {key:<60} {state}", flush=True)
    return usable
