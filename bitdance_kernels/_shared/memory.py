"""Tensors for large results on the CPU, in the memory of earlier ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from bitdance_kernels._shared import pool

_CPU = torch.device("cpu")  # faster than its name


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """``torch.empty`` of a shape on the CPU, which reuses the memory of earlier large results."""
    size = math.prod(shape) * dtype.itemsize
    memory = pool.take(size) if size >= pool.MAPPED_BYTES and _may_map() else None
    if memory is None:  # sizes one by one take half as long as a shape
        return torch.empty(*shape, dtype=dtype, device=_CPU)  # or PyTorch's error
    return torch.from_numpy(memory).view(dtype).view(torch.Size(shape))


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous ``empty`` of the shape and dtype of `tensor`."""
    if tensor.nbytes < pool.MAPPED_BYTES:  # 1 us faster than naming shape and dtype
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return empty(tensor.shape, tensor.dtype)


def _may_map() -> bool:
    """Whether no mode or setting observes allocations."""
    return (
        not torch.are_deterministic_algorithms_enabled()  # they fill new memory
        and not _get_current_dispatch_mode_stack()
    )
