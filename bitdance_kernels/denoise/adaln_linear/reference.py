"""adaln_linear in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import packed_weight
from bitdance_kernels.denoise._shared import activations, modulated_norm


def run(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    n = modulated_norm.forward(x, scale, shift, norm_weight, norm_bias, eps)
    return F.linear(n, packed_weight.matrix(weight, dtype=x.dtype), bias)


def run_swiglu(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    n = modulated_norm.forward(x, scale, shift, norm_weight, norm_bias, eps)
    matrix = packed_weight.matrix(weight, "swiglu", dtype=x.dtype)
    return activations.swiglu_gate(F.linear(n, matrix, bias))
