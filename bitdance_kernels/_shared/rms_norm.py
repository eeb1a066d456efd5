"""RMSNorm: checks and formula (Zhang and Sennrich 2019, equation 4)."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import checks
from bitdance_kernels._shared.dtypes import accumulate_dtype


def check(
    op: str, x: torch.Tensor, weight: torch.Tensor | None, *, name: str = "norm_weight"
) -> None:
    """Raise TypeError or ValueError unless `weight` is None or the weight of a norm of `x`."""
    if weight is not None:
        checks.dtype(op, name, weight, checks.FLOATS)
        checks.shape(op, name, weight, x.shape[-1:], "[C]")
        checks.same_device(op, "x", x, **{name: weight})


def forward(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """The norm x / sqrt(mean(x^2) + eps) * weight, rounded once to the dtype of `x`."""
    wide = x.to(accumulate_dtype(x))
    n = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (n if weight is None else n * weight.to(n.dtype)).to(x.dtype)
