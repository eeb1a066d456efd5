"""linear_swiglu in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import packed_weight
from bitdance_kernels.denoise._shared import activations


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    matrix = packed_weight.matrix(weight, "swiglu", dtype=x.dtype)
    return activations.swiglu_gate(F.linear(x, matrix, bias))
