"""The heap of a command's process."""

from __future__ import annotations

import contextlib
import ctypes
import os

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = 1 << 30
_LARGEST = 256 << 20, 32 << 20  # glibc before 2.35 takes no more than the second
_VARIABLES = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"


def keep_freed_memory() -> None:
    """Let glibc's heap keep up to 1 GiB that is freed, in pieces of at most 256 MiB.

    By itself it gives the maps of a network back to the system and gets them again, page by page,
    in every call. A process whose environment sets its heap stays as it is.
    """
    if any(name in os.environ for name in _VARIABLES):
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT)
        for size in _LARGEST:
            if mallopt(_MMAP_THRESHOLD, size):
                break
