"""``bitdance`` and ``python -m bitdance``: the command line, before anything slow is imported."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command line; returns its exit status."""
    # Ctrl-C while modules are imported, and when all is done, shows no traceback of them.
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interrupts:
        signal.signal(signal.SIGINT, _stop)
    from bitdance.cli import main as run

    if interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = run()
    if interrupts:
        signal.signal(signal.SIGINT, _stop)
    return status


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
