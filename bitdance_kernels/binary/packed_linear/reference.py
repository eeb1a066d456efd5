"""packed_linear in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels.binary._shared import bits


def run(packed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(bits.signs(packed, weight.dtype), weight, bias)


def run_backward(
    grad: torch.Tensor, packed: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = grad.reshape(-1, grad.shape[-1]).to(weight.dtype)
    signs = bits.signs(packed.reshape(-1, packed.shape[-1]), weight.dtype)
    return rows.T @ signs, rows.sum(0)
