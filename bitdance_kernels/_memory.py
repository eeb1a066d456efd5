"""Memory of large results on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# glibc maps what is larger than this anew for each request, and unmaps it when it is freed.
_MAPPED_BYTES = 32 << 20
_LARGE_PAGE = 2 << 20


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """``torch.empty``; a result that is mapped anew begins with a page of 2 MiB.

    The kernels ask the system for such pages. Where a result begins inside of one, its two ends lie
    on pages of 4 KiB instead, whose 512 faults take a fifth of the time of 64 MiB. What lies before
    the first large page is never touched and takes no memory.
    """
    size = torch.Size(shape)
    used = size.numel() * dtype.itemsize
    if used < _MAPPED_BYTES:
        return torch.empty(size, dtype=dtype)
    spacious = torch.empty(used + _LARGE_PAGE, dtype=torch.uint8)
    skipped = -spacious.data_ptr() % _LARGE_PAGE
    # Through numpy, so that the result's storage begins and ends with it.
    return torch.from_numpy(spacious.numpy()[skipped : skipped + used]).view(dtype).view(size)
