"""adaln_norm in C++: csrc/cpu/adaln_norm."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._shared import memory, native
from bitdance_kernels.denoise._shared import rows_cpu

fills_results = True


def unsupported(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    return rows_cpu.unsupported("adaln_norm", *tensors, whole_rows=True)


def run(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    y = memory.empty_like(x)
    native.cpu.adaln_norm(
        *rows_cpu.readable(x, scale, shift),
        rows_cpu.vector(weight),
        rows_cpu.vector(bias),
        y,
        *rows_cpu.size(x),
        eps,
        torch.get_num_threads(),
    )
    return y


def unsupported_backward(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    return rows_cpu.unsupported("adaln_norm_backward", *tensors, whole_rows=True)


def run_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    return rows_cpu.norm_backward(grad, x, scale, shift, weight, bias, eps)
