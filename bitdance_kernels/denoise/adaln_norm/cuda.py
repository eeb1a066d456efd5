"""adaln_norm in CUDA C++: csrc/cuda/adaln_norm."""

from __future__ import annotations

import torch

from bitdance_kernels import _native
from bitdance_kernels.denoise import cuda_rows


def unsupported(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> str | None:
    return cuda_rows.unsupported("adaln_norm", x, scale, shift, weight, bias)


def run(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    y = x.new_empty(x.shape)
    _kept, rows = cuda_rows.rows(x, scale, shift, weight, bias, y)
    _native.cuda.adaln_norm(*rows, cuda_rows.count(x), x.shape[-1], eps, *_native.stream(x.device))
    return y


def unsupported_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> str | None:
    function = "adaln_norm_backward"
    return cuda_rows.unsupported_backward(function, x, weight, bias, grad, scale, shift)


def run_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    gradients, outputs = cuda_rows.gradients(x, x, scale, shift, weight, bias)
    partial, slices = cuda_rows.workspace(x, weight, bias)
    _kept, rows = cuda_rows.rows(grad, x, scale, weight, bias)
    _native.cuda.adaln_norm_backward(
        *rows,
        *outputs,
        partial.data_ptr(),
        cuda_rows.count(x),
        x.shape[-1],
        slices,
        eps,
        *_native.stream(x.device),
    )
    return tuple(gradients)
