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
    *,
    epilogue: int = skinny_cuda.PLAIN,
) -> torch.Tensor:
    halves = 2 if epilogue == skinny_cuda.SWIGLU else 1
    y = x.new_empty((*x.shape[:-1], packed_weight.features(weight) // halves))
    skinny_cuda.product(
        x, weight, bias, y, norm=skinny_cuda.LAYER_NORM, scale=scale, shift=shift,
        norm_weight=norm_weight, norm_bias=norm_bias, moments=moments, eps=eps, epilogue=epilogue,
    )  # fmt: skip
    return y


def unsupported_swiglu(*inputs: Any) -> str | None:
    return unsupported(*inputs)


def run_swiglu(*inputs: Any) -> torch.Tensor:
    return run(*inputs, epilogue=skinny_cuda.SWIGLU)
