"""Progress bars: drawn in place on a terminal, and elsewhere as a plain line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm.auto import tqdm

__all__ = ["progress_bar"]

_SECONDS = 30  # between two lines; a shorter run writes none
_LINES: dict[str, Any] = {
    "bar_format": "{desc}{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    "delay": _SECONDS,
    "mininterval": _SECONDS,
    "miniters": 1,  # or tqdm guesses how many updates take so long
}
# In a notebook tqdm makes a widget, which needs no terminal.
_WIDGETS = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)


class _Lines:
    """A stream that makes a line of all that a bar draws at a time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():  # without carriage returns
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False


def progress_bar(items: Iterable[Any] | None = None, /, **settings: Any) -> Any:
    """A progress bar on stderr.

    Where stderr is no terminal, a line is written every 30 seconds, and nothing by a shorter run.

    Args:
        items: what to iterate over; without it, ``update`` counts.
        settings: arguments of ``tqdm.tqdm``, which replace those from here. With a ``file`` the bar
            is drawn in place, whatever the file is.
    """
    stream = sys.stderr
    if stream is None:  # as under pythonw
        settings["disable"] = True
    elif "file" not in settings and not _WIDGETS and not stream.isatty():
        title = settings.get("desc")
        lines = {"file": _Lines(stream), "desc": f"{title}: " if title else None}
        settings = _LINES | settings | lines
    return tqdm(items, **settings)
