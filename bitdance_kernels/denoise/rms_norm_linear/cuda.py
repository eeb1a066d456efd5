"""rms_norm_linear in CUDA C++: csrc/cuda/common/skinny_product_sm90.cuh."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._shared import packed_weight, skinny_cuda

native_functions = native_functions_swiglu = skinny_cuda.NATIVE_FUNCTIONS


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    *_: object,
) -> str | None:
    return skinny_cuda.unsupported(x, weight, norms=(norm_weight,))


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    y = x.new_empty((*x.shape[:-1], packed_weight.features(weight)))
    _product(y, skinny_cuda.PLAIN, x, weight, bias, norm_weight, moments, eps)
    return y


def unsupported_swiglu(*inputs: Any) -> str | None:
    return unsupported(*inputs)


def run_swiglu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    y = x.new_empty((*x.shape[:-1], packed_weight.features(weight) // 2))
    _product(y, skinny_cuda.SWIGLU, x, weight, bias, norm_weight, moments, eps)
    return y


def _product(
    y: torch.Tensor,
    epilogue: int,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> None:
    skinny_cuda.product(
        x, weight, bias, y, norm=skinny_cuda.RMS_NORM, norm_weight=norm_weight, moments=moments,
        eps=eps, epilogue=epilogue,
    )  # fmt: skip
