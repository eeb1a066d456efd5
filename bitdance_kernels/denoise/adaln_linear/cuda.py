"""adaln_linear in CUDA C++: csrc/cuda/common/skinny_product_sm90.cuh."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._shared import packed_weight, skinny_cuda

native_functions = native_functions_swiglu = skinny_cuda.NATIVE_FUNCTIONS


def unsupported(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    *_: object,
) -> str | None:
    norms = (norm_weight, norm_bias)
    return skinny_cuda.unsupported(x, weight, scale, shift, norms=norms)


def run(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    y = x.new_empty((*x.shape[:-1], packed_weight.features(weight)))
    _product(y, skinny_cuda.PLAIN, x, scale, shift, weight, bias, norm_weight, norm_bias, moments,
             eps)  # fmt: skip
    return y


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
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    y = x.new_empty((*x.shape[:-1], packed_weight.features(weight) // 2))
    _product(y, skinny_cuda.SWIGLU, x, scale, shift, weight, bias, norm_weight, norm_bias, moments,
             eps)  # fmt: skip
    return y


def _product(
    y: torch.Tensor,
    epilogue: int,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> None:
    skinny_cuda.product(
        x, weight, bias, y, norm=skinny_cuda.LAYER_NORM, scale=scale, shift=shift,
        norm_weight=norm_weight, norm_bias=norm_bias, moments=moments, eps=eps, epilogue=epilogue,
    )  # fmt: skip
