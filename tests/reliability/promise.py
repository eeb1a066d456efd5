"""A promise: what is counted, how many are asked for, and where they are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Measure", "Promise"]


@dataclass(frozen=True)
class Promise:
    """A row of the table in docs/reliability.md.

    Attributes:
        name: key of the figure, such as ``"mutants caught"``.
        text: what holds, in words, such as "Each planted fault fails a named test".
        goal: the figure to reach.
        unit: what is counted, such as ``"mutants"`` or ``"%"``.
        where: "CI", "nightly" or "card".
        at_most: whether the figure has to stay at or below the goal rather than reach it.
    """

    name: str
    text: str
    goal: float
    unit: str
    where: str
    at_most: bool = False


Measure = Callable[[float], Mapping[str, float]]
"""A suite: takes a scale, 1 for the figures of the promises, and returns the figure of each promise
by name. What is counted has passed: a suite raises :class:`AssertionError` with the case that
fails, and the seed that repeats it."""
