"""linear_gated_residual in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared.dtypes import accumulate_dtype


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor,
) -> torch.Tensor:
    dtype = accumulate_dtype(residual)
    h = F.linear(x, weight, bias).to(dtype)
    return torch.addcmul(residual.to(dtype), gate.to(dtype), h).to(residual.dtype).contiguous()
