"""Runs pytest many times, each time in a fork of a process that has imported what all runs need.

A program of its own: its working folder is a copy of a checkout, its arguments are modules to
import. It reads a line of JSON for each run, with the arguments of pytest, a file for what it
prints and a limit in seconds, and answers with a line of JSON: the exit status, negative for a
signal, or null where time has run out. PyTorch and Triton take most of the time of a small test to
import; nothing of the library is imported before a fork, so that each run sees the files as they
are.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time

_LIBRARY = ("bitdance", "bitdance_kernels")
_POLL = 0.01


def main() -> None:
    """Serve until the end of the input."""
    sys.path[0] = os.getcwd()  # as with `python -m pytest`
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import pytest

    early = [name for name in sys.modules if name.partition(".")[0] in _LIBRARY]
    assert not early, f"imported before a fault is planted: {early}"
    for line in sys.stdin:
        run = json.loads(line)
        process = os.fork()
        if process == 0:
            os.setsid()
            _redirect(run["log"])
            status = pytest.main(run["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(status))
        print(json.dumps(_wait(process, run["limit"])), flush=True)


def _redirect(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)


def _wait(process: int, limit: float) -> int | None:
    """Exit status of a run, whose processes are gone after that; None if it takes too long."""
    end, found = time.monotonic() + limit, 0
    while not found and time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if not found:
            time.sleep(_POLL)
    with contextlib.suppress(ProcessLookupError):  # it may have left others behind
        os.killpg(process, signal.SIGKILL)
    if not found:
        os.waitpid(process, 0)
        return None
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
