"""adaln_linear in Triton; the kernel is that of denoise/_shared/product_triton.py."""

from __future__ import annotations

import torch

from bitdance_kernels.denoise._shared import product_triton
from bitdance_kernels.denoise._shared.product_triton import Norm


def unsupported(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
) -> str | None:
    return product_triton.unsupported(x, scale, shift, weight, bias, norm_weight, norm_bias)


def run(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    norm = Norm(scale, shift, norm_weight, norm_bias, eps)
    return product_triton.product(x, weight, bias, norm=norm)


def unsupported_swiglu(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
) -> str | None:
    return unsupported(x, scale, shift, weight, bias, norm_weight, norm_bias, eps)


def run_swiglu(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    norm = Norm(scale, shift, norm_weight, norm_bias, eps)
    return product_triton.product(x, weight, bias, norm=norm, swiglu=True)
