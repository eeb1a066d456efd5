"""rms_norm_linear in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import packed_weight, rms_norm
from bitdance_kernels.denoise._shared import activations


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    n = rms_norm.forward(x, norm_weight, eps)
    return F.linear(n, packed_weight.matrix(weight, dtype=x.dtype), bias)


def run_swiglu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    n = rms_norm.forward(x, norm_weight, eps)
    matrix = packed_weight.matrix(weight, "swiglu", dtype=x.dtype)
    return activations.swiglu_gate(F.linear(n, matrix, bias))
