"""What the C++ backends of the head's row ops share: float32 rows, given by address and stride."""

from __future__ import annotations

import torch

from bitdance_kernels import _native
from bitdance_kernels._rows import as_rows


def unsupported(function: str, *tensors: torch.Tensor | None) -> str | None:
    """Why the C++ code cannot take these tensors; None when it can."""
    given = [tensor for tensor in tensors if tensor is not None]
    reason = _native.cpu_unsupported(function, *given)
    if reason is not None:
        return reason
    for tensor in given:
        if tensor.dtype != torch.float32:
            return f"it handles float32 alone, got {tensor.dtype}"
    return None


def rows(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
    """Tensors [..., C] to read as rows, and for each its address and its stride, flattened.

    The tensors must be kept while the addresses are used: some are copies.
    """
    kept: list[torch.Tensor] = []
    arguments: list[int] = []
    for tensor in tensors:
        tensor, _, stride = as_rows(tensor)
        kept.append(tensor)
        arguments += [tensor.data_ptr(), stride]
    return kept, arguments


def vector(tensor: torch.Tensor | None) -> tuple[torch.Tensor | None, int]:
    """A vector [C] or None, contiguous, and its address (0 for None)."""
    if tensor is None:
        return None, 0
    tensor = tensor.contiguous()
    return tensor, tensor.data_ptr()


def count(x: torch.Tensor) -> int:
    """Rows of `x` [..., C]."""
    return x.shape[:-1].numel()


def like(x: torch.Tensor, number: int) -> list[torch.Tensor]:
    """New contiguous tensors of the shape of `x`."""
    return [x.new_empty(x.shape) for _ in range(number)]


def norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, scale, shift, weight and bias of adaln_norm; empty for what is None."""
    of_x, of_scale, of_shift = like(x, 3)
    number, channels = count(x), x.shape[-1]
    affine = weight is not None or bias is not None
    sums = x.new_empty(2, channels if affine else 0)
    moments = x.new_empty(number, 2)
    _kept, arguments = rows(grad, x, scale)
    kept_weight, weight_at = vector(weight)
    kept_bias, bias_at = vector(bias)
    _native.cpu.adaln_norm_backward(
        *arguments,
        weight_at,
        bias_at,
        of_x.data_ptr(),
        of_scale.data_ptr(),
        of_shift.data_ptr(),
        sums[0].data_ptr(),
        sums[1].data_ptr(),
        moments.data_ptr(),
        number,
        channels,
        eps,
        torch.get_num_threads(),
    )
    of_weight, of_bias = sums.unbind()
    none = x.new_empty(0)
    return (
        of_x,
        of_scale,
        of_shift,
        none if kept_weight is None else of_weight.clone(),
        none.clone() if kept_bias is None else of_bias.clone(),
    )
