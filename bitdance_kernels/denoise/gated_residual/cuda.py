"""gated_residual in CUDA C++, alone and with the norm that follows: csrc/cuda/gated_residual."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.denoise._shared import rows_cuda


def unsupported(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> str | None:
    return rows_cuda.unsupported("gated_residual", x, h, gate)


def run(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    y = x.new_empty(x.shape)
    if y.numel() == 0:
        return y
    rows = rows_cuda.rows(x, h, gate, y)
    native.cuda.gated_residual(*rows, rows_cuda.count(x), x.shape[-1], *native.stream(x.device))
    return y


def unsupported_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> str | None:
    return rows_cuda.unsupported("gated_residual_backward", grad, x, h, gate)


def run_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    gradients, outputs = rows_cuda.gradients(x, x, h, gate)
    if x.numel() == 0:
        return tuple(gradients)
    rows = rows_cuda.rows(grad, h, gate)
    native.cuda.gated_residual_backward(
        *rows, *outputs, rows_cuda.count(x), x.shape[-1], *native.stream(x.device)
    )
    return tuple(gradients)


def unsupported_adaln(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    return rows_cuda.unsupported("gated_residual_adaln", *tensors)


def run_adaln(
    x: torch.Tensor,
    h: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    y, z = x.new_empty(x.shape), x.new_empty(x.shape)
    rows = rows_cuda.rows(x, h, gate, scale, shift, weight, bias, y, z)
    native.cuda.gated_residual_adaln(
        *rows, rows_cuda.count(x), x.shape[-1], eps, *native.stream(x.device)
    )
    return y, z


def unsupported_adaln_backward(
    grad_total: torch.Tensor,
    grad_normed: torch.Tensor,
    total: torch.Tensor,
    h: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> str | None:
    function = "gated_residual_adaln_backward"
    others = (grad_total, grad_normed, h, gate, scale, shift)
    return rows_cuda.unsupported_backward(function, total, weight, bias, *others)


def run_adaln_backward(
    grad_total: torch.Tensor,
    grad_normed: torch.Tensor,
    total: torch.Tensor,
    h: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    gradients, outputs = rows_cuda.gradients(total, total, h, gate, scale, shift, weight, bias)
    partial, slices = rows_cuda.workspace(total, weight, bias)
    rows = rows_cuda.rows(grad_total, grad_normed, total, h, gate, scale, weight, bias)
    native.cuda.gated_residual_adaln_backward(
        *rows,
        *outputs,
        partial,
        rows_cuda.count(total),
        total.shape[-1],
        slices,
        eps,
        *native.stream(total.device),
    )
    return tuple(gradients)
