"""The end of a command: an exit status, and one line for any error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

import torch

from bitdance.distributed import World

__all__ = ["run_command", "world_of"]

_MAX_LENGTH = 1000
_EXPECTED = (OSError, ValueError, RuntimeError, MemoryError, ImportError)
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class _ShownElsewhereError(Exception):
    """The end of a process whose error another process shows."""


@contextlib.contextmanager
def world_of(device: str) -> Iterator[World]:
    """The processes of a command, of which one shows the error that ends all."""
    with World.from_env(device) as world:
        try:
            yield world
        except Exception as error:
            if os.environ.get("BITDANCE_DEBUG") or world.tell(error):
                raise
            raise _ShownElsewhereError from error


def run_command(name: Callable[[], str], command: Callable[[], int]) -> int:
    """Run a command; returns its exit status.

    With BITDANCE_DEBUG in the environment, errors are raised instead of printed.

    Args:
        name: returns the name of the command, for errors.
        command: runs the command and returns its status.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # escape what the terminal cannot show
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
    except _ShownElsewhereError:
        return 1
    except Exception as error:
        if os.environ.get("BITDANCE_DEBUG"):
            raise
        _print(f"{name()}: error: {explain(error)}")
        return 1
    finally:
        _flush(sys.stdout)


def explain(error: Exception) -> str:
    """A description of an error on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    ):
        text = f"out of memory, try less at a time (--batch-size, --size): {text}".rstrip(": ")
    elif not isinstance(error, _EXPECTED) or not text:
        text = (
            f"{type(error).__name__}: {text} (unexpected; BITDANCE_DEBUG=1 in the environment "
            "shows the traceback)"
        )
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody reads stderr
        _flush(sys.stderr)


def _flush(stream: TextIO | None) -> None:
    """Flush a stream, or discard its content, so that the interpreter can exit without errors."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]
        os.close(null)
