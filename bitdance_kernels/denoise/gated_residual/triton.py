"""gated_residual in Triton, alone and with the norm: kernels of denoise/_shared/norm_triton.py."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels.denoise._shared import norm_triton


def unsupported(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> str | None:
    return norm_triton.unsupported(x, h, gate)


def run(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    total, _ = norm_triton.forward(x, (h, gate), None)
    assert total is not None
    return total


def unsupported_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> str | None:
    return norm_triton.unsupported(grad, x, h, gate)


def run_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return norm_triton.backward(grad, None, x, (h, gate), None)


def unsupported_adaln(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    return norm_triton.unsupported(*tensors)


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
    total, normed = norm_triton.forward(x, (h, gate), (scale, shift), weight, bias, eps)
    assert total is not None
    assert normed is not None
    return total, normed


def unsupported_adaln_backward(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    return norm_triton.unsupported(*tensors)


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
    return norm_triton.backward(
        grad_total, grad_normed, total, (h, gate), (scale, shift), weight, bias, eps
    )
