"""linear_swiglu in Triton; the kernel is that of denoise/_shared/product_triton.py."""

from __future__ import annotations

import torch

from bitdance_kernels.denoise._shared import product_triton


def unsupported(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    return product_triton.unsupported(x, weight, bias)


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return product_triton.product(x, weight, bias, swiglu=True)
