"""How a command ends: one line of error, whatever went wrong, and the exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TextIO

import torch

__all__ = ["run_command"]

_LONGEST = 1000
_EXPECTED = (OSError, ValueError, RuntimeError, MemoryError, ImportError)
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def run_command(name: Callable[[], str], command: Callable[[], int]) -> int:
    """Run a command; returns its exit status.

    With BITDANCE_DEBUG in the environment, errors are raised as they are.

    Args:
        name: what the command is called in errors.
        command: returns the status.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show is written in ASCII
            stream.reconfigure(errors="backslashreplace")
    try:
        status = command()
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _print("stopped")
        return 130
    except BrokenPipeError:  # as of `bitdance ... | head`
        return 141
    except Exception as error:
        if os.environ.get("BITDANCE_DEBUG"):
            raise
        _print(f"{name()}: error: {explain(error)}")
        return 1
    finally:
        _settle(sys.stdout)


def explain(error: Exception) -> str:
    """What went wrong, on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    ):
        text = f"out of memory, less at a time may do (--batch-size, --size): {text}".rstrip(": ")
    elif not isinstance(error, _EXPECTED) or not text:
        text = (
            f"{type(error).__name__}: {text} (unexpected; with BITDANCE_DEBUG=1 in the environment "
            "the traceback is shown)"
        )
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it
        _settle(sys.stderr)


def _settle(stream: TextIO | None) -> None:
    """Have nothing left that the interpreter would fail to write when it ends."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)
