"""linear_gated_residual in C++: csrc/cpu/linear_gated_residual."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._shared import moments
from bitdance_kernels.denoise._shared import panels_cpu

native_functions = native_functions_moments = ("linear_gated_residual",)


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> str | None:
    return panels_cpu.unsupported(weight, *native_functions, tensors=(x, residual, gate))


def unsupported_moments(*inputs: Any) -> str | None:
    return unsupported(*inputs)


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    return panels_cpu.gated_residual(x, weight, bias, residual, gate)


def run_moments(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    y = run(x, weight, bias, residual, gate)
    return y, moments.of(y)
