"""A pool that reuses the memory of large results on the CPU, of tensors and of arrays."""

from __future__ import annotations

import math
import mmap
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

# From 32 MiB on glibc maps new memory for each request and unmaps it when it is freed. The system
# clears every new page, which takes longer than the kernels need to write it. Smaller results are
# best left to glibc, whose heap keeps their pages after the first calls: a mapping from the pool
# costs 20 us, and offering its pages to the system and taking them back a third of what swiglu
# takes to write 9 MiB.
MAPPED_BYTES = 32 << 20
_LARGE_PAGE = 2 << 20
_MAX_UNUSED_BYTES = 512 << 20


class _Unused:
    """Unused mappings, the latest last, for results of the same size.

    Without a lock: a result may be freed at any moment, also while this thread would hold it.
    """

    def __init__(self) -> None:
        self._mappings: list[mmap.mmap] = []

    @property
    def sizes(self) -> list[int]:
        return [len(mapping) for mapping in self._mappings]

    def take(self, size: int) -> mmap.mmap | None:
        for mapping in reversed(self._mappings.copy()):
            if len(mapping) == size:
                try:
                    self._mappings.remove(mapping)
                except ValueError:
                    continue  # another thread took it
                return mapping
        return None

    def clear(self) -> None:
        self._mappings.clear()

    def give(self, mapping: mmap.mmap) -> None:
        if len(mapping) > _MAX_UNUSED_BYTES:
            return
        # The system may reclaim the pages of unused mappings.
        mapping.madvise(mmap.MADV_FREE)
        self._mappings.append(mapping)
        while sum(self.sizes) > _MAX_UNUSED_BYTES:
            self._mappings.pop(0)


unused = _Unused()


def take(size: int) -> npt.NDArray[np.uint8] | None:
    """`size` bytes of the pool, of any content; None where it has none.

    Up to 512 MiB of freed results are held for that, on loan: the system may take them back. A
    large result begins with a page of 2 MiB, which the kernels ask the system for: where it began
    inside of one, its two ends would lie on pages of 4 KiB, whose 512 faults take a fifth of the
    time of 64 MiB. What lies before the first large page is never touched and takes no memory.
    """
    if size < MAPPED_BYTES or not hasattr(mmap, "MADV_FREE"):
        return None
    mapping = unused.take(size + _LARGE_PAGE) or _map(size + _LARGE_PAGE)
    if mapping is None:
        return None
    memory = np.frombuffer(mapping, dtype=np.uint8)
    # Every view holds this array, so the mapping returns to the pool when the last one is freed.
    weakref.finalize(memory, unused.give, mapping).atexit = False
    skipped = -memory.ctypes.data % _LARGE_PAGE
    return memory[skipped : skipped + size]


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """``numpy.empty``, which reuses the memory of earlier large results."""
    size = math.prod(shape) * dtype.itemsize
    memory = take(size) if size >= MAPPED_BYTES else None
    return np.empty(shape, dtype) if memory is None else memory.view(dtype).reshape(shape)


def _map(size: int) -> mmap.mmap | None:
    """A new mapping; if the system has no memory left, the pool is emptied first."""
    for _ in range(2):
        try:
            return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError):  # no memory, or no such number
            unused.clear()
    return None
