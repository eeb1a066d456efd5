"""gated_residual in C++, alone and with the norm that follows: csrc/cpu/gated_residual*.cpp."""

from __future__ import annotations

import torch

from bitdance_kernels import _native
from bitdance_kernels.denoise import native_rows


def unsupported(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> str | None:
    return native_rows.unsupported("gated_residual", x, h, gate)


def run(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    (y,), written = native_rows.new(x)
    if y.numel() == 0:
        return y
    _kept, rows = native_rows.read(x, h, gate)
    _native.cpu.gated_residual(
        *rows, *written, native_rows.count(x), x.shape[-1], torch.get_num_threads()
    )
    return y


def unsupported_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> str | None:
    return native_rows.unsupported("gated_residual_backward", grad, x, h, gate)


def run_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return _sum_backward(grad, None, x, h, gate)


def _sum_backward(
    grad: torch.Tensor,
    more: torch.Tensor | None,
    x: torch.Tensor,
    h: torch.Tensor,
    gate: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, h and gate, from `grad` + `more` of the sum."""
    gradients, written = native_rows.new(x, h, gate)
    if grad.numel() == 0:
        return tuple(gradients)
    _kept, (of_sum, *rest) = native_rows.read(grad, h, gate)
    _native.cpu.gated_residual_backward(
        of_sum,
        0 if more is None else more.data_ptr(),
        *rest,
        *written,
        native_rows.count(grad),
        grad.shape[-1],
        torch.get_num_threads(),
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
    tensors = (x, h, gate, scale, shift, weight, bias)
    return native_rows.unsupported("gated_residual_adaln", *tensors, whole_rows=True)


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
    (y, z), written = native_rows.new(x, x)
    _kept, rows = native_rows.read(x, h, gate, scale, shift)
    weight, weight_at = native_rows.vector(weight)
    bias, bias_at = native_rows.vector(bias)
    _native.cpu.gated_residual_adaln(
        *rows,
        weight_at,
        bias_at,
        *written,
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
    return native_rows.unsupported("gated_residual_backward", *tensors, whole_rows=True)


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
        grad_normed, total, scale, shift, weight, bias, eps, of_x_dtype=torch.float32
    )
    return *_sum_backward(grad_total, through_norm, total, h, gate), *modulation
