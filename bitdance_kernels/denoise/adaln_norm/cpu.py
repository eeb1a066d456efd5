"""adaln_norm in C++: csrc/cpu/adaln_norm."""

from __future__ import annotations

import torch

from bitdance_kernels import _memory, _native
from bitdance_kernels.denoise import native_rows


def unsupported(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> str | None:
    return native_rows.unsupported("adaln_norm", x, scale, shift, weight, bias, whole_rows=True)


def run(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    y = _memory.empty_like(x)
    _native.cpu.adaln_norm(
        *native_rows.spaced(x, scale, shift),
        native_rows.vector(weight),
        native_rows.vector(bias),
        y,
        *native_rows.size(x),
        eps,
        torch.get_num_threads(),
    )
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
    tensors = (grad, x, scale, shift, weight, bias)
    return native_rows.unsupported("adaln_norm_backward", *tensors, whole_rows=True)


def run_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    return native_rows.norm_backward(grad, x, scale, shift, weight, bias, eps)
