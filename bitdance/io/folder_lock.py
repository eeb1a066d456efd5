"""The lock of a folder that one run at a time writes to."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "FolderLock"]

LOCK = ".lock"
"""Name of the lock file."""


class FolderLock:
    """Lock of an existing folder until it is released, collected, or the process ends.

    Where a system or a disk has no locks, nothing is locked and nothing is refused.

    Args:
        folder: the folder.

    Raises:
        OSError: another run has the lock, or the lock file cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        descriptor = None if fcntl is None else _lock(folder / LOCK)
        self.release = weakref.finalize(self, _unlock, descriptor, folder / LOCK)


def _lock(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OSError(f"{path.parent} is in use by another run") from error
        except OSError:  # this disk has no locks
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # the previous owner has removed the file meanwhile


def _unlock(descriptor: int | None, path: Path) -> None:
    if descriptor is not None:
        path.unlink(missing_ok=True)
        os.close(descriptor)
