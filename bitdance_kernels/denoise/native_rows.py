"""What the C++ backends of the head's row ops share: rows, given by address, stride and dtype."""

from __future__ import annotations

import torch

from bitdance_kernels import _memory, _native
from bitdance_kernels._rows import as_rows

_MOST_HALVES = 8192

Rows = tuple[int, int, int]


def unsupported(
    function: str, *tensors: torch.Tensor | None, whole_rows: bool = False
) -> str | None:
    """Why the C++ code cannot take these tensors; None when it can.

    Args:
        function: of the compiled module.
        *tensors: the op's, [..., C] or [C].
        whole_rows: rows of halves are widened whole, into buffers of limited size.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    reason = _native.cpu_unsupported(function, *given)
    if reason is not None:
        return reason
    for tensor in given:
        if tensor.dtype not in _native.DTYPE_CODES:
            return f"it does not handle {tensor.dtype}"
        if whole_rows and tensor.dtype != torch.float32 and tensor.shape[-1] > _MOST_HALVES:
            return (
                f"it handles rows of at most {_MOST_HALVES} channels of {tensor.dtype}, "
                f"got {tensor.shape[-1]}"
            )
    return None


def float32_unsupported(function: str, *tensors: torch.Tensor) -> str | None:
    """The same where the C++ code knows float32 alone."""
    reason = _native.cpu_unsupported(function, *tensors)
    if reason is not None:
        return reason
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return f"it handles float32 alone, got {tensor.dtype}"
    return None


def read(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], list[Rows]]:
    """Tensors [..., C] to read as rows, and each as the C functions take it.

    The tensors must be kept while the addresses are used: some are copies.
    """
    kept: list[torch.Tensor] = []
    arguments: list[Rows] = []
    for tensor in tensors:
        tensor, _, stride = as_rows(tensor)
        kept.append(tensor)
        arguments.append((tensor.data_ptr(), stride, _native.DTYPE_CODES[tensor.dtype]))
    return kept, arguments


def new(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], list[Rows]]:
    """For each tensor [..., C] a new contiguous one, and those as the C functions take them."""
    made = [_memory.empty_like(tensor) for tensor in tensors]
    return made, [(t.data_ptr(), t.shape[-1], _native.DTYPE_CODES[t.dtype]) for t in made]


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
    """A vector [C] or None as contiguous float32, and its address (0 for None)."""
    if tensor is None:
        return None, 0
    tensor = tensor.to(torch.float32).contiguous()
    return tensor, tensor.data_ptr()


def count(x: torch.Tensor) -> int:
    """Rows of `x` [..., C]."""
    return x.shape[:-1].numel()


def norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    *,
    of_x_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, scale, shift, weight and bias of adaln_norm; empty for what is None.

    Each is of the dtype of its tensor, that of x of `of_x_dtype` if given.
    """
    like_x = x if of_x_dtype is None else x.new_empty((), dtype=of_x_dtype).expand(x.shape)
    (of_x, of_scale, of_shift), written = new(like_x, scale, shift)
    number, channels = count(x), x.shape[-1]
    affine = weight is not None or bias is not None
    sums = torch.empty(2, channels if affine else 0)
    moments = torch.empty(number, 2)
    _kept, arguments = read(grad, x, scale)
    _kept_weight, weight_at = vector(weight)
    _kept_bias, bias_at = vector(bias)
    _native.cpu.adaln_norm_backward(
        *arguments,
        weight_at,
        bias_at,
        *written,
        sums[0].data_ptr(),
        sums[1].data_ptr(),
        moments.data_ptr(),
        number,
        channels,
        eps,
        torch.get_num_threads(),
    )
    of_weight, of_bias = (
        x.new_empty(0) if given is None else of_given.to(given.dtype, copy=True)
        for of_given, given in zip(sums.unbind(), (weight, bias), strict=True)
    )
    return of_x, of_scale, of_shift, of_weight, of_bias
