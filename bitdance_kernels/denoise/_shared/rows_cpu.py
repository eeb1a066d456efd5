"""Helpers of the C++ backends of the head's row ops."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import memory, native
from bitdance_kernels._shared.rows import as_rows

_MAX_HALVES = 8192


def unsupported(
    function: str, *tensors: torch.Tensor | None, whole_rows: bool = False
) -> str | None:
    """The reason why the C++ code cannot take these tensors; None if it can.

    Args:
        function: of the compiled module.
        *tensors: the op's, [..., C] or [C].
        whole_rows: rows of halves are widened whole, into buffers of limited size.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    reason = native.cpu_unsupported(function, *given)
    if reason is not None:
        return reason
    for tensor in given:
        if tensor.dtype not in native.DTYPE_CODES:
            return f"it does not handle {tensor.dtype}"
        if whole_rows and tensor.dtype != torch.float32 and tensor.shape[-1] > _MAX_HALVES:
            return (
                f"it handles rows of at most {_MAX_HALVES} channels of {tensor.dtype}, "
                f"got {tensor.shape[-1]}"
            )
    return None


def float32_unsupported(function: str, *tensors: torch.Tensor) -> str | None:
    """The same for C++ code that handles float32 only."""
    reason = native.cpu_unsupported(function, *tensors)
    if reason is not None:
        return reason
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return f"it handles float32 alone, got {tensor.dtype}"
    return None


def spaced(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors [..., C], with copies of those whose rows are not evenly spaced."""
    if native.cpu.evenly_spaced(*tensors):
        return tensors
    return tuple(as_rows(tensor)[0] for tensor in tensors)


def readable(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same for code that also reads rows several times, as of [B, 1, C] for [B, T, C]."""
    if native.cpu.readable(*tensors):
        return tensors
    return tuple(t if native.cpu.readable(t) else as_rows(t)[0] for t in tensors)


def vector(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A vector [C] or None as the C functions take it: contiguous, in float32."""
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def size(x: torch.Tensor) -> tuple[int, int]:
    """Rows of `x` [..., C] (0 if C is 0), and C."""
    channels = x.shape[-1]
    return x.numel() // (channels or 1), channels


def norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    *,
    grad_x_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, scale, shift, weight and bias of adaln_norm; empty for None.

    Each has the dtype of its tensor, that of x `grad_x_dtype` if given.
    """
    if grad_x_dtype is None or grad_x_dtype == x.dtype:
        grad_x = memory.empty_like(x)
    else:
        grad_x = memory.empty(x.shape, grad_x_dtype)
    gradients = (grad_x, memory.empty_like(scale), memory.empty_like(shift))
    rows, channels = size(x)
    sums: tuple[torch.Tensor | None, ...] = (None, None)
    if weight is not None or bias is not None:
        sums = tuple(x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    native.cpu.adaln_norm_backward(
        *readable(grad, x, scale),
        vector(weight),
        vector(bias),
        *gradients,
        *sums,
        x.new_empty(rows, 2, dtype=torch.float32),
        rows,
        channels,
        eps,
        torch.get_num_threads(),
    )
    # The gradient of None is an empty tensor: the schema has no optional results.
    affine = (
        x.new_empty(0) if given is None or found is None else found.to(given.dtype)
        for found, given in zip(sums, (weight, bias), strict=True)
    )
    return *gradients, *affine
