"""A crafted file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CANARY", "Attack"]

CANARY = "canary"
"""Name of a file that code of an attack makes in the working folder."""


@dataclass(frozen=True)
class Attack:
    """A crafted file.

    Attributes:
        name: what it is.
        format: name of the format that it pretends to be.
        build: changes the sample in a folder.
        optional: whether the same content may be read: what is changed need not be looked at.
    """

    name: str
    format: str
    build: Callable[[Path], object]
    optional: bool = False
