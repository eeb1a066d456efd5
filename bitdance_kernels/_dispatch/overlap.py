"""Check that arguments which an op writes overlap no other memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bitdance_kernels._dispatch.arguments import Argument, span
from bitdance_kernels._shared import checks

# Limit of numpy's search for a common address; usual views of one buffer need far less.
_MAX_WORK = 100_000


def check(op: str, arguments: Sequence[Argument], inputs: Sequence[Any]) -> None:
    """Raise ValueError if a written argument overlaps itself or another argument.

    The answer for two views is exact: interleaved views that share no element pass. A view counts
    as overlapping itself unless each of its dimensions steps over all that the smaller ones span,
    which every view does that indexing, slicing and permuting make.

    It depends on shapes, strides and dtypes, and on how far apart the tensors lie.
    """
    for i, written in enumerate(arguments):
        if not written.written or inputs[i] is None:
            continue
        if _overlaps_itself(inputs[i]):
            got = f"strides {list(inputs[i].stride())} for shape {list(inputs[i].shape)}"
            raise checks.fail(op, written.name, "of elements with memory of their own", got)
        for j, other in enumerate(arguments):
            if i == j or not other.is_tensor or inputs[j] is None:
                continue
            if _overlap(inputs[i], inputs[j]):
                got = f"memory that {other.name} has too"
                raise checks.fail(op, written.name, "memory of its own", got)


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    if tensor.is_contiguous() or tensor.numel() == 0:
        return False
    spanned = 1
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    for step, size in sorted((step, size) for step, size in steps if size > 1):
        if step < spanned:
            return True
        spanned += (size - 1) * step
    return False


def _overlap(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first is second:
        return first.numel() > 0
    first, second = _beneath(first), _beneath(second)
    if not _has_address(first) or not _has_address(second) or first.device != second.device:
        return False
    (begin, end), (other_begin, other_end) = _extent(first), _extent(second)
    if begin >= other_end or other_begin >= end:
        return False
    try:
        # Its type stubs know two of the values of `max_work` alone.
        return np.shares_memory(_Memory(first), _Memory(second), max_work=_MAX_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _beneath(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that wrappers of torch.func hold."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def _has_address(tensor: torch.Tensor) -> bool:
    """Whether a tensor has elements in memory: it is not empty, and no tracer's or subclass's."""
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return False
    if torch._is_functional_tensor(tensor):
        return False
    return (tensor.is_cpu or tensor.is_cuda) and tensor.numel() > 0


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    begin = tensor.data_ptr()
    return begin, begin + span(tensor) * tensor.element_size()


class _Memory:
    """Addresses of a tensor in numpy's array interface; nothing is read, so they may be a GPU's."""

    def __init__(self, tensor: torch.Tensor) -> None:
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "data": (tensor.data_ptr(), True),
            "shape": tuple(tensor.shape),
            "strides": tuple(step * size for step in tensor.stride()),
        }
