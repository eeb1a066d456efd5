"""adaln_linear in Triton; the kernel is that of denoise/_shared/product_triton.py."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels.denoise._shared import product_triton
from bitdance_kernels.denoise._shared.product_triton import Norm


def unsupported(*inputs: Any) -> str | None:
    *tensors, _eps = inputs
    return product_triton.unsupported(*tensors)


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


def unsupported_swiglu(*inputs: Any) -> str | None:
    return unsupported(*inputs)


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
