"""The modulated LayerNorm of adaln_norm and gated_residual: checks, formula and gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import checks
from bitdance_kernels._shared.dtypes import accumulate_dtype


def check(
    op: str,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    name: str = "x",
    prefix: str = "",
) -> None:
    """Raise TypeError or ValueError unless x [..., C] can be modulated by the others.

    The op's argument `name` is x, and `prefix` is what its "weight" and "bias" begin with.
    """
    checks.dtype(op, name, x, checks.FLOATS)
    checks.rank(op, name, x, 1)
    if x.shape[-1] == 0:
        raise checks.fail(op, name, "[..., C] with C > 0", f"shape {list(x.shape)}")
    for other, tensor in (("scale", scale), ("shift", shift)):
        checks.dtype(op, other, tensor, checks.FLOATS)
        checks.broadcast(op, other, tensor, x.shape, f"that of {name}")
    affine = {f"{prefix}weight": weight, f"{prefix}bias": bias}
    for other, vector in affine.items():
        if vector is not None:
            checks.dtype(op, other, vector, checks.FLOATS)
            checks.shape(op, other, vector, x.shape[-1:], "[C]")
    checks.same_device(op, name, x, scale=scale, shift=shift, **affine)


def forward(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """LN(x) (1 + scale) + shift, rounded once to the dtype of `x`."""
    dtype = accumulate_dtype(x)
    weight = None if weight is None else weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    normed = F.layer_norm(x.to(dtype), x.shape[-1:], weight, bias, eps)
    return torch.addcmul(shift.to(dtype), normed, 1 + scale.to(dtype)).to(x.dtype)


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, scale, shift, weight and bias, in the dtype of the computation.

    With unit = (x - mean) / sqrt(var + eps) and n = weight unit + bias, the gradient of x is that
    of unit less what it has along 1 and along unit, since the statistics depend on x too.
    """
    dtype = accumulate_dtype(x)
    x, grad = x.to(dtype), grad.to(dtype)
    centred = x - x.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    unit = centred * rstd
    n = unit if weight is None else unit * weight.to(dtype)
    n = n if bias is None else n + bias.to(dtype)

    grad_n = grad * (1 + scale.to(dtype))
    grad_unit = grad_n if weight is None else grad_n * weight.to(dtype)
    along_one = grad_unit.mean(-1, keepdim=True)
    along_unit = (grad_unit * unit).mean(-1, keepdim=True)
    grad_x = rstd * (grad_unit - along_one - unit * along_unit)
    rows = tuple(range(x.dim() - 1))
    grad_weight, grad_bias = grad_n * unit, grad_n
    if rows:
        grad_weight, grad_bias = grad_weight.sum(rows), grad_bias.sum(rows)
    return grad_x, grad * n, grad, grad_weight, grad_bias


def as_given(gradient: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    """`gradient` in the dtype of the argument; an empty tensor if the argument is None.

    The schema of a backward op has no optional results.
    """
    if given is None:
        return gradient.new_empty(0)
    # Results must not alias arguments or each other.
    return gradient.to(given.dtype, copy=True, memory_format=torch.contiguous_format)


def fake_as_given(x: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    """The fake of `as_given`."""
    if given is None:
        return x.new_empty(0, dtype=accumulate_dtype(x))
    return torch.empty_like(given, memory_format=torch.contiguous_format)
