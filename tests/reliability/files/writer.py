"""A writer of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Writer", "listing"]


@dataclass(frozen=True)
class Writer:
    """A writer of the library.

    Attributes:
        name: short and unique.
        write: writes state 0 or 1 below a folder, as the library does.
        read: the states that are there, each whole: a number for every file or folder that is
            written at once, None for one that is not there. It raises an error for a damaged one.
        replaces: whether state 1 may take the place of state 0.
        resumes: whether it does nothing but tidy where state 1 is there.
        overwrites: whether state 1 may take the place of itself, by whole parts. A run writes a
            folder of a step again only if what is there is damaged.
        clear: removes what a killed call has left, where the next one refuses to replace it.
        sites: "module.function" of the library that writes, for the registry's test.
        needs: packages without which it is left out.
    """

    name: str
    write: Callable[[Path, int], object]
    read: Callable[[Path], tuple[int | None, ...]]
    replaces: bool = True
    resumes: bool = False
    overwrites: bool = True
    clear: Callable[[Path], object] | None = None
    sites: tuple[str, ...] = field(default=())
    needs: tuple[str, ...] = ()


def listing(folder: Path) -> frozenset[str]:
    """Names of everything below a folder."""
    return frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
