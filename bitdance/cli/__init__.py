"""The command line, ``bitdance`` or ``python -m bitdance.cli``, with one module per command.

The entry point is here, before any slow import; ``bitdance.cli.main`` has the parser.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from bitdance.cli.heap import keep_freed_memory

__all__ = ["run"]


def run() -> int:
    """Run the command line as this process; returns its exit status."""
    keep_freed_memory()
    # No traceback for Ctrl-C during the imports or after the command.
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interrupts:
        signal.signal(signal.SIGINT, _stop)
    from bitdance.cli.main import main

    if interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = main()
    if interrupts:
        signal.signal(signal.SIGINT, _stop)
    return status


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(130)
