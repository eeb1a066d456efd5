"""The steps of a run on a card, one after the other, in one process.

The run's state is its result file: what is done, what is being done, what failed. So a process that
dies in a step (a kernel that hangs or writes where it must not ends it) loses that step alone, and
another process goes on behind it.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, run
from benchmarks.shapes import Bench

BROKEN = 3
"""Exit status of a process whose card no longer answers; another one can go on."""

Step = tuple[str, Callable[[], None]]


@dataclass
class Context:
    """What every part of a run works on.

    Attributes:
        cases: the ops.
        path: the result file.
        parts: seconds for each part, in their order; a part may use what earlier ones left.
        quick: short timings.
        dry_run: on the CPU, at tiny sizes.
        result: content of the result file.
        share: (i, n): of the checks' samples only those of the i-th of n processes.
    """

    cases: Sequence[Bench]
    path: Path
    parts: Mapping[str, float]
    quick: bool
    dry_run: bool
    result: dict[str, Any]
    share: tuple[int, int] = (0, 1)

    @classmethod
    def open(
        cls,
        cases: Sequence[Bench],
        path: Path,
        parts: Mapping[str, float],
        *,
        quick: bool,
        dry_run: bool,
        share: tuple[int, int] = (0, 1),
    ) -> Context:
        """A run's state, from its file if there is one."""
        if path.exists():
            result = json.loads(path.read_text())
        else:
            device = torch.device("cpu" if dry_run else "cuda")
            result = {
                "machine": machine.describe(device, torch.get_num_threads()),
                "peers": machine.peers(),
                "dry_run": dry_run,
                "started": time.time(),
                "limits": {},
                "probes": [],
                "checks": [],
                "rows": [],
                "images": [],
                "failed": {},
                "not timed": {},
                "not run": {},
                "done": [],
                "doing": None,
            }
        return cls(cases, path, parts, quick, dry_run, result, share)

    @property
    def device(self) -> torch.device:
        """The card, or the CPU in a dry run."""
        return torch.device("cpu" if self.dry_run else "cuda")

    def left(self, part: str) -> float:
        """Seconds until `part` must be over."""
        names = list(self.parts)
        end = sum(self.parts[name] for name in names[: names.index(part) + 1])
        return end - (time.time() - self.result["started"])

    def save(self) -> None:
        """Write the result file, whole or not at all."""
        run.save(self.result, self.path)


def work(context: Context, steps: Mapping[str, Callable[[Context], Sequence[Step]]]) -> int:
    """Do all steps that are not done yet; returns 0, or BROKEN when the card stopped answering."""
    for part in context.parts:
        for name, function in steps[part](context):
            key = f"{part}: {name}"
            if key in context.result["done"]:
                continue
            if context.left(part) <= 0:
                context.result["not run"][key] = "the time was used up"
                context.result["done"].append(key)
                continue
            if not _do(context, key, function):
                return BROKEN
    context.save()
    return 0


def _do(context: Context, key: str, function: Callable[[], None]) -> bool:
    """One step; False when the card is unusable after it."""
    result = context.result
    result["doing"] = key
    context.save()
    try:
        function()
    except Exception:
        result["failed"][key] = traceback.format_exc()
    usable = True
    try:
        if not context.dry_run:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.rand(1, device="cuda")
    # After an illegal access every call of this process fails, and after a capture that drew random
    # numbers and failed, every call that draws some.
    except RuntimeError as error:
        result["failed"].setdefault(key, f"{type(error).__name__}: {error}")
        usable = False
    result["done"].append(key)
    result["doing"] = None
    context.save()
    seconds = time.time() - result["started"]
    state = "failed" if key in result["failed"] else _wrong(result, key) or "done"
    print(f"{seconds:6.1f} s  {key:<60} {state}", flush=True)
    return usable


def _wrong(result: Mapping[str, Any], key: str) -> str | None:
    count = sum(check["step"] == key and check["wrong"] is not None for check in result["checks"])
    return f"{count} checks failed" if count else None
