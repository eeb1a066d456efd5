"""gated_residual in C++, alone and with the norm that follows: csrc/cpu/gated_residual*.cpp."""

from __future__ import annotations

import torch

from bitdance_kernels import _native
from bitdance_kernels.denoise import native_rows


def unsupported(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> str | None:
    return native_rows.unsupported("gated_residual", x, h, gate)


def run(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    y = x.new_empty(x.shape)
    if y.numel() == 0:
        return y
    _kept, rows = native_rows.rows(x, h, gate)
    _native.cpu.gated_residual(
        *rows, y.data_ptr(), native_rows.count(x), x.shape[-1], torch.get_num_threads()
    )
    return y


def unsupported_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> str | None:
    return native_rows.unsupported("gated_residual_backward", grad, x, h, gate)


def run_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return _sum_backward(grad, None, h, gate)


def _sum_backward(
    grad: torch.Tensor, more: torch.Tensor | None, h: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, h and gate, from `grad` + `more` of the sum."""
    of_x, of_h, of_gate = native_rows.like(grad, 3)
    if grad.numel() == 0:
        return of_x, of_h, of_gate
    _kept, (grad_at, grad_stride, *rest) = native_rows.rows(grad, h, gate)
    _native.cpu.gated_residual_backward(
        grad_at,
        grad_stride,
        0 if more is None else more.data_ptr(),
        *rest,
        of_x.data_ptr(),
        of_h.data_ptr(),
        of_gate.data_ptr(),
        native_rows.count(grad),
        grad.shape[-1],
        torch.get_num_threads(),
    )
    return of_x, of_h, of_gate


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
    return native_rows.unsupported("gated_residual_adaln", x, h, gate, scale, shift, weight, bias)


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
    y, z = native_rows.like(x, 2)
    _kept, rows = native_rows.rows(x, h, gate, scale, shift)
    weight, weight_at = native_rows.vector(weight)
    bias, bias_at = native_rows.vector(bias)
    _native.cpu.gated_residual_adaln(
        *rows,
        weight_at,
        bias_at,
        y.data_ptr(),
        z.data_ptr(),
        native_rows.count(x),
        x.shape[-1],
        eps,
        torch.get_num_threads(),
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
    tensors = (grad_total, grad_normed, total, h, gate, scale, shift, weight, bias)
    return native_rows.unsupported("gated_residual_backward", *tensors)


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
    through_norm, *modulation = native_rows.norm_backward(
        grad_normed, total, scale, weight, bias, eps
    )
    return *_sum_backward(grad_total, through_norm, h, gate), *modulation
