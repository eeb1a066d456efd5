"""adaln_linear in C++: rows are normalized once, by adaln_norm, for all panels of the weight."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels.denoise._shared import panels_cpu, rows_cpu

native_functions = ("adaln_norm", "linear_panels")
native_functions_swiglu = ("adaln_norm", "linear_swiglu")


def unsupported(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor, *others: Any
) -> str | None:
    return _norm_unsupported(x, scale, shift, *others) or panels_cpu.unsupported(
        weight, "linear_panels", tensors=(x,)
    )


def _norm_unsupported(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *others: Any
) -> str | None:
    _bias, norm_weight, norm_bias, _moments, _eps = others
    return rows_cpu.unsupported(
        "adaln_norm", x, scale, shift, norm_weight, norm_bias, whole_rows=True
    )


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
    n = panels_cpu.adaln_norm(x, scale, shift, norm_weight, norm_bias, eps)
    return panels_cpu.product(n, weight, bias)


def unsupported_swiglu(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor, *others: Any
) -> str | None:
    return (
        _norm_unsupported(x, scale, shift, *others)
        or panels_cpu.unsupported(weight, "linear_swiglu", tensors=(x,))
        or panels_cpu.swiglu_unsupported(weight)
    )


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
    n = panels_cpu.adaln_norm(x, scale, shift, norm_weight, norm_bias, eps)
    return panels_cpu.swiglu(n, weight, bias)
