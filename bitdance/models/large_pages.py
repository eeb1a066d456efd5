"""Memory for the weights of a model on a CPU, on pages of 2 MiB where the system has them.

A small model's weights are read from the third-level cache in every step. The processor fetches
ahead within a page; on pages of 4 KiB, which hold a few channels of a panel, it often waits.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["empty"]

_PAGE = 2 << 20
_CHUNK = 4 * _PAGE
_ALIGNMENT = 64


class _Memory:
    """Chunks of whole large pages, from which tensors are cut; each lives as long as its tensors.

    Attributes:
        rest: what is left of the latest chunk.
    """

    def __init__(self) -> None:
        self.rest = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._lock = threading.Lock()

    def take(self, size: int) -> torch.Tensor:
        """So many bytes, at a multiple of 64."""
        rounded = -(-size // _ALIGNMENT) * _ALIGNMENT
        with self._lock:
            rest = self.rest
            if len(rest) < rounded:
                rest = _chunk(max(_CHUNK, -(-rounded // _PAGE) * _PAGE))
            left = rest[rounded:]
            # A large weight leaves the smaller ones their chunk.
            if len(left) >= len(self.rest) or len(self.rest) >= rounded:
                self.rest = left
        return rest[:size]


_memory = _Memory()


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """``torch.empty`` on the CPU; several tensors may share a storage."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(*shape, dtype=dtype, device="cpu")
    # Views made in inference mode of memory made in it could not be written outside of it.
    with torch.inference_mode(False):
        return _memory.take(math.prod(shape) * dtype.itemsize).view(dtype).view(torch.Size(shape))


def _chunk(size: int) -> torch.Tensor:
    """New memory that begins with a large page; what lies before it is never touched."""
    mapping = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.from_numpy(np.frombuffer(mapping, np.uint8))
    skipped = -memory.data_ptr() % _PAGE
    return memory[skipped : skipped + size]
