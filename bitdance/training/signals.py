"""SIGTERM and SIGINT during training."""

from __future__ import annotations

import signal
import threading
from types import FrameType

__all__ = ["STOPPING", "SignalRecorder"]

STOPPING = (signal.SIGTERM, signal.SIGINT)
"""The signals that end a run after its step."""


class SignalRecorder:
    """Context manager in which SIGTERM and SIGINT are recorded instead of ending the process.

    It does nothing outside of the main thread, which alone can handle signals.

    Attributes:
        number: number of the last signal, 0 without any.
    """

    number = 0

    def __enter__(self) -> None:
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._handlers[number] = signal.signal(number, self._record)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.number = number
