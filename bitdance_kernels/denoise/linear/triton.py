"""linear in Triton; the kernel is that of denoise/_product_triton.py."""

from __future__ import annotations

import torch

from bitdance_kernels.denoise import _product_triton


def unsupported(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    return _product_triton.unsupported(x, weight, bias)


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return _product_triton.product(x, weight, bias)


def unsupported_out(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> str | None:
    return _product_triton.unsupported(x, weight, bias, out)


def run_out(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    if out.is_contiguous():
        _product_triton.product(x, weight, bias, out=out)
    else:
        out.copy_(_product_triton.product(x, weight, bias))
