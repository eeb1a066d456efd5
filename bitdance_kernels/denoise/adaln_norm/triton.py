"""adaln_norm in Triton; the kernels are those of denoise/_shared/norm_triton.py."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels.denoise._shared import norm_triton


def unsupported(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    return norm_triton.unsupported(*tensors)


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


def unsupported_backward(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    return norm_triton.unsupported(*tensors)


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
