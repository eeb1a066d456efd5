"""The table of docs/reliability.md, from the promises and the stored figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import report
from tests.reliability import runs
from tests.reliability.promise import Promise

PAGE = runs.ROOT / "docs/reliability.md"
_HEAD = ["suite", "promise", "goal", "measured", "runs", "date, commit"]


def filled(text: str, suites: Sequence[runs.Suite], outcomes: dict[str, dict[str, Any]]) -> str:
    """`text` with the table of promises in its marked place.

    Raises:
        ValueError: the text has no such place, or another.
    """

    def content(what: str) -> str:
        if what != "reliability":
            raise ValueError(f"the table must be 'reliability', got {what!r}")
        return markdown(suites, outcomes)

    if report.BEGIN not in text:
        raise ValueError("there is no place for the table of promises")
    return report.replaced(text, content)


def markdown(suites: Sequence[runs.Suite], outcomes: dict[str, dict[str, Any]]) -> str:
    """A row for each promise, and the machines of the figures."""
    rows = [_HEAD, ["---"] * len(_HEAD)]
    rows += [
        [suite.name.replace("_", " "), promise.text, _goal(promise), figure, promise.where, when]
        for suite in suites
        for promise in suite.promises
        for figure, when in [_measured(promise, outcomes.get(suite.name))]
    ]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    used = {_machine(outcomes[suite.name]["machine"]) for suite in suites if suite.name in outcomes}
    lines += ["", f"Measured on: {'; '.join(sorted(used))}."] * bool(used)
    return "\n".join(lines) + "\n"


def _goal(promise: Promise) -> str:
    return f"{'at most ' * promise.at_most}{_number(promise.goal)} {promise.unit}".rstrip()


def _measured(promise: Promise, outcome: dict[str, Any] | None) -> tuple[str, str]:
    """Figure, and date with commit. A figure of a smaller run, or below the goal, says so."""
    if outcome is None:
        return "not measured", ""
    when = f"{outcome['date'].split()[0]}, {outcome['commit']}"
    if outcome["failure"] is not None:
        return "**failed**", when
    if promise.name not in outcome["figures"]:
        return "not measured", ""
    figure = outcome["figures"][promise.name]["figure"]
    text = _number(figure)
    if outcome["scale"] < 1:
        text += f" (a run of {outcome['scale']:g} of the size)"
    elif not runs.is_kept(promise, figure):
        text = f"**{text}**, not kept"
    return text, when


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _machine(machine: dict[str, Any]) -> str:
    card = f", {machine['card']}" if machine["card"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}{card}, "
        f"PyTorch {machine['torch']}"
    )
