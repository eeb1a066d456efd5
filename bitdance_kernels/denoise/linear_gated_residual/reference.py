"""linear_gated_residual in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import moments, packed_weight
from bitdance_kernels._shared.dtypes import accumulate_dtype


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    dtype = accumulate_dtype(residual)
    product = F.linear(x, packed_weight.matrix(weight, dtype=x.dtype), bias)
    wide, h = residual.to(dtype), product.to(dtype)
    y = wide + h if gate is None else torch.addcmul(wide, gate.to(dtype), h)
    return y.to(residual.dtype).contiguous()


def run_moments(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    y = run(x, weight, bias, residual, gate)
    return y, moments.of(y)
