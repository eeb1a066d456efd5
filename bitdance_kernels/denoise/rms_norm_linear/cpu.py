"""rms_norm_linear in C++: rows are normalized once, by rms_norm, for all panels of the weight."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels.denoise._shared import panels_cpu, rows_cpu

native_functions = ("rms_norm", "linear_panels")
native_functions_swiglu = ("rms_norm", "linear_swiglu")


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    *_: Any,
) -> str | None:
    return rows_cpu.unsupported("rms_norm", x, norm_weight) or panels_cpu.unsupported(
        weight, "linear_panels", tensors=(x,)
    )


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    return panels_cpu.product(panels_cpu.rms_norm(x, norm_weight, eps), weight, bias)


def unsupported_swiglu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    *_: Any,
) -> str | None:
    return (
        rows_cpu.unsupported("rms_norm", x, norm_weight)
        or panels_cpu.unsupported(weight, "linear_swiglu", tensors=(x,))
        or panels_cpu.swiglu_unsupported(weight)
    )


def run_swiglu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    return panels_cpu.swiglu(panels_cpu.rms_norm(x, norm_weight, eps), weight, bias)
