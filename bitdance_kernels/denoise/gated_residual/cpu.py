"""gated_residual in C++, alone and with the norm that follows: csrc/cpu/gated_residual."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._shared import memory, native
from bitdance_kernels.denoise._shared import rows_cpu

fills_results = fills_results_adaln = True


def unsupported(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> str | None:
    return rows_cpu.unsupported("gated_residual", x, h, gate)


def run(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    y = memory.empty_like(x)
    native.cpu.gated_residual(
        *rows_cpu.readable(x, h, gate), y, *rows_cpu.size(x), torch.get_num_threads()
    )
    return y


def unsupported_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> str | None:
    return rows_cpu.unsupported("gated_residual_backward", grad, x, h, gate)


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
    gradients = tuple(memory.empty_like(tensor) for tensor in (x, h, gate))
    grad_sum, *others = rows_cpu.readable(grad, h, gate)
    native.cpu.gated_residual_backward(
        grad_sum, more, *others, *gradients, *rows_cpu.size(grad), torch.get_num_threads()
    )
    return gradients


def unsupported_adaln(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    return rows_cpu.unsupported("gated_residual_adaln", *tensors, whole_rows=True)


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
    y, z = memory.empty_like(x), memory.empty_like(x)
    native.cpu.gated_residual_adaln(
        *rows_cpu.readable(x, h, gate, scale, shift),
        rows_cpu.vector(weight),
        rows_cpu.vector(bias),
        y,
        z,
        *rows_cpu.size(x),
        eps,
        torch.get_num_threads(),
    )
    return y, z


native_functions_adaln_backward = ("gated_residual_backward", "adaln_norm_backward")


def unsupported_adaln_backward(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    reasons = (
        rows_cpu.unsupported(name, *tensors, whole_rows=True)
        for name in native_functions_adaln_backward
    )
    return next(filter(None, reasons), None)


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
    through_norm, *modulation = rows_cpu.norm_backward(
        grad_normed, total, scale, shift, weight, bias, eps, grad_x_dtype=torch.float32
    )
    return *_sum_backward(grad_total, through_norm, total, h, gate), *modulation
