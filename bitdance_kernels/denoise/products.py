"""What swiglu and the products with something around them share: checks, the gate in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels import _checks
from bitdance_kernels._dtypes import accumulate_dtype


def check(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    swiglu: bool = False,
) -> None:
    """Raise TypeError or ValueError unless x [..., C] can be multiplied by weight [N, C]."""
    _checks.dtype(op, "x", x, _checks.FLOATS)
    _checks.rank(op, "x", x, 1)
    if x.shape[-1] == 0:
        raise _checks.fail(op, "x", "[..., C] with C > 0", f"shape {list(x.shape)}")
    _checks.dtype(op, "weight", weight, (x.dtype,))
    _checks.rank(op, "weight", weight, 2, 2)
    letters = "[2F, C]" if swiglu else "[F, C]"
    _checks.shape(op, "weight", weight, (weight.shape[0], x.shape[-1]), letters)
    if swiglu and weight.shape[0] % 2 != 0:
        raise _checks.fail(op, "weight", letters, f"shape {list(weight.shape)}")
    if bias is not None:
        _checks.dtype(op, "bias", bias, (x.dtype,))
        _checks.shape(op, "bias", bias, weight.shape[:1], letters[:-4] + "]")
    _checks.same_device(op, "x", x, weight=weight, bias=bias)


def gate(h: torch.Tensor) -> torch.Tensor:
    """silu(h1) h2 of h = [h1 | h2], rounded once."""
    first, second = h.to(accumulate_dtype(h)).chunk(2, dim=-1)
    return (F.silu(first) * second).to(h.dtype)
