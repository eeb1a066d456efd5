"""A pool that reuses the memory of large results on the CPU."""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

# From 32 MiB on glibc maps new memory for each request and unmaps it when it is freed; for less it
# may do the same, or trim its heap. The system clears every new page, which takes longer than the
# kernels need to write it. A mapping from the pool costs 20 us.
_MAPPED_BYTES = 8 << 20
_LARGE_PAGE = 2 << 20
_MAX_UNUSED_BYTES = 512 << 20

_CPU = torch.device("cpu")  # faster than its name


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


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """``torch.empty`` on the CPU, which reuses the memory of earlier large results.

    Up to 512 MiB of freed results are held for that, on loan: the system may take them back. A
    large result begins with a page of 2 MiB, which the kernels ask the system for: where it began
    inside of one, its two ends would lie on pages of 4 KiB, whose 512 faults take a fifth of the
    time of 64 MiB. What lies before the first large page is never touched and takes no memory.
    """
    used = math.prod(shape) * dtype.itemsize
    if used < _MAPPED_BYTES or not _may_map():
        return torch.empty(shape, dtype=dtype, device=_CPU)
    mapping = unused.take(used + _LARGE_PAGE) or _map(used + _LARGE_PAGE)
    if mapping is None:
        return torch.empty(shape, dtype=dtype, device=_CPU)  # or PyTorch's error
    memory = np.frombuffer(mapping, dtype=np.uint8)
    skipped = -memory.ctypes.data % _LARGE_PAGE
    memory = memory[skipped : skipped + used]
    # The tensor holds this array, so the mapping returns to the pool when the storage is freed.
    weakref.finalize(memory, unused.give, mapping).atexit = False
    return torch.from_numpy(memory).view(dtype).view(torch.Size(shape))


def _map(size: int) -> mmap.mmap | None:
    """A new mapping; if the system has no memory left, the pool is emptied first."""
    for _ in range(2):
        try:
            return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError):  # no memory, or no such number
            unused.clear()
    return None


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous ``empty`` of the shape and dtype of `tensor`."""
    if tensor.nbytes < _MAPPED_BYTES:  # 1 us faster than naming shape and dtype
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return empty(tensor.shape, tensor.dtype)


def _may_map() -> bool:
    """Whether the system can reclaim mappings and no mode or setting observes allocations."""
    return (
        hasattr(mmap, "MADV_FREE")
        and not torch.are_deterministic_algorithms_enabled()  # they fill new memory
        and not _get_current_dispatch_mode_stack()
    )
