"""adaln_norm in Triton; the kernels are those of denoise/_shared/norm_triton.py."""

from __future__ import annotations

import torch

from bitdance_kernels.denoise._shared import norm_triton


def unsupported(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> str | None:
    return norm_triton.unsupported(x, scale, shift, weight, bias)


def run(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    _, normed = norm_triton.forward(x, None, (scale, shift), weight, bias, eps)
    assert normed is not None
    return normed


def unsupported_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> str | None:
    return norm_triton.unsupported(grad, x, scale, shift, weight, bias)


def run_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    return norm_triton.backward(None, grad, x, None, (scale, shift), weight, bias, eps)
