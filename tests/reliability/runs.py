"""Suites of promises: found, run each in a process of its own, and their figures stored."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tests.reliability
from tests.reliability.promise import Promise

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks/results/reliability.json"
WHERE = ("CI", "nightly", "card")
TAIL = 30
"""Lines of a failed suite's output that are kept."""


@dataclass(frozen=True)
class Suite:
    """A module with PROMISES and ``measure``.

    Attributes:
        name: name of the module.
        promises: its PROMISES.
        environment: its ENVIRONMENT, where it has one: variables that its process begins with.
    """

    name: str
    promises: tuple[Promise, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def find() -> list[Suite]:
    """The suites of this folder, by name.

    Raises:
        ValueError: two promises of a suite have one name, or a promise runs nowhere.
    """
    importlib.import_module("tests.conftest")  # settings that have to precede other imports
    suites = []
    for module in pkgutil.iter_modules(tests.reliability.__path__):
        if module.name.startswith(("test_", "_")):
            continue
        content = importlib.import_module(f"tests.reliability.{module.name}")
        if not hasattr(content, "PROMISES") or not hasattr(content, "measure"):
            continue
        environment = getattr(content, "ENVIRONMENT", {})
        suite = Suite(module.name, tuple(content.PROMISES), environment)
        names = [promise.name for promise in suite.promises]
        if len(set(names)) < len(names):
            raise ValueError(f"{suite.name}: names of promises must differ, got {names}")
        for promise in suite.promises:
            if promise.where not in WHERE:
                raise ValueError(
                    f"{suite.name}: where must be one of {WHERE}, got {promise.where!r}"
                )
        suites.append(suite)
    return sorted(suites, key=lambda suite: suite.name)


def is_kept(promise: Promise, figure: float) -> bool:
    """Whether a figure reaches the goal, or stays within it."""
    return figure <= promise.goal if promise.at_most else figure >= promise.goal


def run(
    suite: Suite, scale: float, limit: float, *, origin: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The outcome of a suite in a process of its own.

    Args:
        suite: what to run.
        scale: 1 for the figures of the promises.
        limit: seconds after which the process and what it has started are killed.
        origin: commit and machine, by default those of now.

    Returns:
        date, commit, machine, scale, seconds, figures by name of the promise, and ``failure``: None
        or the last lines of what the process has printed.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures, output = Path(folder, "figures.json"), Path(folder, "output.txt")
        command = [sys.executable, "-m", "tests.reliability.child", suite.name]
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [*command, repr(scale), str(figures)], cwd=ROOT, stdout=stream,
                env={**os.environ, **suite.environment}, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                why = _status(process.wait(limit))
            except subprocess.TimeoutExpired:
                why = f"killed after {limit:.0f} s"
            finally:
                # What the suite has started goes with it, also where the command is stopped.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if not why and not figures.exists():
            why = "ended without figures"
        if why:
            lines = output.read_text(errors="replace").replace(f"{ROOT}/", "").splitlines()
            why = "\n".join([*lines[-TAIL:], f"{suite.name}: {why}"])
        found = {} if why else json.loads(figures.read_text())
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"), **(origin or here()), "scale": scale,
        "seconds": round(time.monotonic() - begin, 1), "failure": why or None,
        "figures": {
            promise.name: {"figure": found[promise.name], "goal": promise.goal}
            for promise in suite.promises
            if promise.name in found
        },
    }  # fmt: skip


def _status(code: int) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit status {code}" if code else ""


def here() -> dict[str, Any]:
    """The commit of the checkout, and processor, cores and card of the machine."""
    import torch

    from benchmarks import machine

    described = machine.describe(torch.device("cpu"), torch.get_num_threads())
    return {
        "commit": described["commit"],
        "machine": {
            "cpu": described["cpu"]["model"], "cores": os.cpu_count(),
            "instruction_set": described["cpu"]["instruction_set_used"],
            "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "torch": torch.__version__,
        },
    }  # fmt: skip


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Outcomes by suite; none where there is no such file.

    Raises:
        ValueError: the file is not one that :func:`store` writes.
    """
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not isinstance(content.get("suites"), dict):
        raise ValueError(f"{path} is no result of `python -m tests.reliability`")
    suites: dict[str, dict[str, Any]] = content["suites"]
    return suites


def store(path: Path, suite: str, outcome: dict[str, Any]) -> None:
    """Put the outcome of a suite in place of its earlier one; those of other suites stay."""
    outcomes = {**load(path), suite: outcome}
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    ordered = {name: outcomes[name] for name in sorted(outcomes)}
    written.write_text(json.dumps({"suites": ordered}, indent=2) + "\n")
    written.replace(path)
