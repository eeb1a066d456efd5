"""What a command says at its end: text for people, or with ``--json`` one object for programs."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Report", "add_json_argument", "run_and_print"]


@dataclass(frozen=True)
class Report:
    """The end of a command.

    Attributes:
        values: for programs: names and JSON's types, paths, tuples and floats that are not finite.
        text: for people, without a newline at its end; empty where the command has said all.
        status: exit status.
    """

    values: Mapping[str, Any]
    text: str
    status: int = 0


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` to a command that returns a ``Report``."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, all else on stderr"
    )


def run_and_print(
    run: Callable[[argparse.Namespace], Report | int | None], options: argparse.Namespace
) -> int:
    """Run a command and print its report; returns its exit status.

    With ``--json`` stdout has the object alone: what else is printed goes to stderr.

    Args:
        run: returns a report, or without one the exit status, where None is 0.
        options: arguments of the command.
    """
    as_json = vars(options).get("json", False)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        report = run(options)
    if not isinstance(report, Report):
        return report or 0
    if as_json:
        print(json.dumps(_to_json(report.values), indent=2, allow_nan=False))
    elif report.text:
        print(report.text)
    return report.status


def _to_json(value: Any) -> Any:
    """A value in JSON's types: null for a float that is not finite, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _to_json(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_json(item) for item in value]
    return value
