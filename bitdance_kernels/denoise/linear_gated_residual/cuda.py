"""linear_gated_residual in CUDA C++: csrc/cuda/common/skinny_product_sm90.cuh."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import moments, skinny_cuda

native_functions = native_functions_moments = skinny_cuda.NATIVE_FUNCTIONS


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> str | None:
    return skinny_cuda.unsupported(x, weight, residual, gate)


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    y = residual.new_empty(residual.shape)
    skinny_cuda.product(
        x, weight, bias, y, epilogue=skinny_cuda.GATED, residual=residual, gate=gate
    )
    return y


def unsupported_moments(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> str | None:
    return unsupported(x, weight, bias, residual, gate)


def run_moments(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    y = residual.new_empty(residual.shape)
    y_moments = moments.fake(y)
    skinny_cuda.product(
        x, weight, bias, y, epilogue=skinny_cuda.GATED, residual=residual, gate=gate,
        y_moments=y_moments,
    )  # fmt: skip
    return y, y_moments
