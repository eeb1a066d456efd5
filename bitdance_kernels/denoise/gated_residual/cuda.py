"""gated_residual in CUDA C++, alone and with the norm that follows: csrc/cuda/gated_residual."""

from __future__ import annotations

import torch

from bitdance_kernels import _native
from bitdance_kernels.denoise import cuda_rows


def unsupported(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> str | None:
    return cuda_rows.unsupported("gated_residual", x, h, gate)


def run(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    y = x.new_empty(x.shape)
    if y.numel() == 0:
        return y
    _kept, rows = cuda_rows.rows(x, h, gate, y)
    _native.cuda.gated_residual(*rows, cuda_rows.count(x), x.shape[-1], *_native.stream(x.device))
    return y


def unsupported_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> str | None:
    return cuda_rows.unsupported("gated_residual_backward", grad, x, h, gate)


def run_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    gradients, outputs = cuda_rows.gradients(x, x, h, gate)
    if x.numel() == 0:
        return tuple(gradients)
    _kept, rows = cuda_rows.rows(grad, h, gate)
    _native.cuda.gated_residual_backward(
        *rows, *outputs, cuda_rows.count(x), x.shape[-1], *_native.stream(x.device)
    )
    return tuple(gradients)


def unsupported_adaln(
    x: torch.Tensor,
    h: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> str | None:
    return cuda_rows.unsupported("gated_residual_adaln", x, h, gate, scale, shift, weight, bias)


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
    _kept, rows = cuda_rows.rows(x, h, gate, scale, shift, weight, bias, y, z)
    _native.cuda.gated_residual_adaln(
        *rows, cuda_rows.count(x), x.shape[-1], eps, *_native.stream(x.device)
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
    return cuda_rows.unsupported_backward(function, total, weight, bias, *others)


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
    gradients, outputs = cuda_rows.gradients(total, total, h, gate, scale, shift, weight, bias)
    partial, slices = cuda_rows.workspace(total, weight, bias)
    _kept, rows = cuda_rows.rows(grad_total, grad_normed, total, h, gate, scale, weight, bias)
    _native.cuda.gated_residual_adaln_backward(
        *rows,
        *outputs,
        partial.data_ptr(),
        cuda_rows.count(total),
        total.shape[-1],
        slices,
        eps,
        *_native.stream(total.device),
    )
    return tuple(gradients)
