"""gated_residual in plain PyTorch, alone and with the norm that follows."""

from __future__ import annotations

import torch

from bitdance_kernels._shared.dtypes import accumulate_dtype
from bitdance_kernels.denoise._shared import modulated_norm


def run(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    dtype = accumulate_dtype(x)
    return torch.addcmul(x.to(dtype), gate.to(dtype), h.to(dtype)).to(x.dtype).contiguous()


def run_backward(
    grad: torch.Tensor, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    dtype = accumulate_dtype(x)
    wide = grad.to(dtype)
    gradients = (wide, wide * gate.to(dtype), wide * h.to(dtype))
    return tuple(map(modulated_norm.as_given, gradients, (x, h, gate)))


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
    total = run(x, h, gate)
    # The norm sees the sum as stored, so that fusing the two ops changes no result.
    return total, modulated_norm.forward(total, scale, shift, weight, bias, eps)


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
    dtype = accumulate_dtype(total)
    grad_through_norm, *modulation = modulated_norm.backward(
        grad_normed, total, scale, weight, bias, eps
    )
    grad_sum = grad_total.to(dtype) + grad_through_norm
    gradients = (grad_sum, grad_sum * gate.to(dtype), grad_sum * h.to(dtype), *modulation)
    arguments = (total, h, gate, scale, shift, weight, bias)
    return tuple(map(modulated_norm.as_given, gradients, arguments))
