"""Processes that may die: what they were doing then is the message of the failure."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Before the server of the processes starts: Triton's kernels run in the interpreter there.
os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.forked import READY

__all__ = ["Note", "run_isolated"]

Note = Callable[[str], None]
"""Takes what the process does next, in words that repeat it."""

_PR_SET_DUMPABLE = 4
_MAX_NOTE = 1000


def run_isolated(function: Callable[..., Any], *args: Any) -> Any:
    """The result of ``function(note, *args)``, computed by a process of its own.

    The process leaves no core dump.

    Args:
        function: a function of a module; takes a ``Note`` first.
        *args: its other arguments; they and the result can be pickled.

    Raises:
        AssertionError: the process died, with its last note; or `function` raised one.
        RuntimeError: `function` raised another exception, which the message tells.
    """
    notes = READY.RawArray(ctypes.c_char, _MAX_NOTE)
    receiver, sender = READY.Pipe(duplex=False)
    process = READY.Process(target=_work, args=(sender, notes, function, args))
    process.start()
    sender.close()
    try:
        kind, value = receiver.recv()
    except EOFError:
        kind = "died"
    process.join()
    if kind == "returned":
        return value
    if kind == "failed":
        raise AssertionError(value)
    if kind == "raised":
        raise RuntimeError(value)
    code = process.exitcode or 0
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    raise AssertionError(f"{notes.value.decode(errors='replace')}: {how}")


def _work(sender: Connection, notes: Any, function: Callable[..., Any], args: Any) -> None:
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)

    def note(text: str) -> None:
        notes.value = text.encode()[: _MAX_NOTE - 1]

    def last() -> str:
        return notes.value.decode(errors="replace")

    try:
        result = function(note, *args)
    except AssertionError as error:
        sender.send(("failed", f"{last()}: {error}"))
    except BaseException as error:
        sender.send(("raised", f"{last()}: {type(error).__name__}: {error}"))
    else:
        sender.send(("returned", result))
