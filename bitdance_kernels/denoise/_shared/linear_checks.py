"""Checks of the ops that multiply by a weight."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import checks


def check(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    swiglu: bool = False,
) -> None:
    """Raise TypeError or ValueError unless x [..., C] can be multiplied by weight [N, C]."""
    checks.dtype(op, "x", x, checks.FLOATS)
    checks.rank(op, "x", x, 1)
    if x.shape[-1] == 0:
        raise checks.fail(op, "x", "[..., C] with C > 0", f"shape {list(x.shape)}")
    checks.dtype(op, "weight", weight, (x.dtype,))
    checks.rank(op, "weight", weight, 2, 2)
    letters = "[2F, C]" if swiglu else "[F, C]"
    checks.shape(op, "weight", weight, (weight.shape[0], x.shape[-1]), letters)
    if swiglu and weight.shape[0] % 2 != 0:
        raise checks.fail(op, "weight", letters, f"shape {list(weight.shape)}")
    if bias is not None:
        checks.dtype(op, "bias", bias, (x.dtype,))
        checks.shape(op, "bias", bias, weight.shape[:1], letters[:-4] + "]")
    checks.same_device(op, "x", x, weight=weight, bias=bias)
