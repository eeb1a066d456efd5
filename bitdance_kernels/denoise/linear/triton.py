"""linear in Triton; the kernel is that of denoise/_shared/product_triton.py."""

from __future__ import annotations

import torch

from bitdance_kernels.denoise._shared import product_triton


def unsupported(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    return product_triton.unsupported(x, weight, bias)


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return product_triton.product(x, weight, bias)


def unsupported_out(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> str | None:
    return product_triton.unsupported(x, weight, bias, out)


def run_out(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    if out.is_contiguous():
        product_triton.product(x, weight, bias, out=out)
    else:
        out.copy_(product_triton.product(x, weight, bias))
