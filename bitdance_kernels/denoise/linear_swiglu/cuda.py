"""linear_swiglu in CUDA C++: csrc/cuda/common/skinny_product_sm90.cuh."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import packed_weight, skinny_cuda

native_functions = skinny_cuda.NATIVE_FUNCTIONS


def unsupported(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    return skinny_cuda.unsupported(x, weight)


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = x.new_empty((*x.shape[:-1], packed_weight.features(weight) // 2))
    skinny_cuda.product(x, weight, bias, y, epilogue=skinny_cuda.SWIGLU)
    return y
