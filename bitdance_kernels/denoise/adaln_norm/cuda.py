"""adaln_norm in CUDA C++: csrc/cuda/adaln_norm."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.denoise._shared import rows_cuda


def unsupported(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    return rows_cuda.unsupported("adaln_norm", *tensors)


def run(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    y = x.new_empty(x.shape)
    rows = rows_cuda.rows(x, scale, shift, weight, bias, y)
    native.cuda.adaln_norm(*rows, rows_cuda.count(x), x.shape[-1], eps, *native.stream(x.device))
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
    return rows_cuda.unsupported_backward(function, x, weight, bias, grad, scale, shift)


def run_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    gradients, outputs = rows_cuda.gradients(x, x, scale, shift, weight, bias)
    partial, slices = rows_cuda.workspace(x, weight, bias)
    rows = rows_cuda.rows(grad, x, scale, weight, bias)
    native.cuda.adaln_norm_backward(
        *rows,
        *outputs,
        partial,
        rows_cuda.count(x),
        x.shape[-1],
        slices,
        eps,
        *native.stream(x.device),
    )
    return tuple(gradients)
