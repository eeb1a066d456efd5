"""adaln_norm in plain PyTorch; the formulas are in modulated_norm.py."""

from __future__ import annotations

import torch

from bitdance_kernels.denoise._shared import modulated_norm


def run(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    return modulated_norm.forward(x, scale, shift, weight, bias, eps)


def run_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    gradients = modulated_norm.backward(grad, x, scale, weight, bias, eps)
    arguments = (x, scale, shift, weight, bias)
    return tuple(map(modulated_norm.as_given, gradients, arguments))
