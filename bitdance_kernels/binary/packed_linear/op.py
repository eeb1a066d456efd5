"""packed_linear: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks

__all__ = ["packed_linear"]

_ORDER = {"cuda": ("triton", "reference"), "cpu": ("reference",)}


def packed_linear(
    packed: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """A linear layer on bits: y = u W^T + b, with u in {-1, +1} the unpacked bits.

    Args:
        packed: uint8 [..., C / 8], any strides.
        weight: [F, C], floating point.
        bias: [F] of the dtype of `weight`, or None.
        backend: "auto", "reference" or "triton".

    Returns:
        [..., F] of the dtype of `weight`, contiguous.

    Raises:
        TypeError: `packed` is not uint8, `weight` not floating point, or `bias` of another dtype.
        ValueError: shapes or devices do not fit.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Sums in float32 (float64 for float64), rounded at the end. Small-integer weights give exact
        results. Differentiable in `weight` and `bias`, which autocast casts to its dtype.

    Backends:
        reference, which stores the unpacked signs; Triton, which does not, and which multiplies
        float32 weights on tensor cores, split exactly into three bfloat16 parts.
    """
    return _op.call(packed, weight, bias, backend)


def _check(packed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    op = "packed_linear"
    checks.dtype(op, "packed", packed, (torch.uint8,))
    checks.rank(op, "packed", packed, 1)
    if packed.shape[-1] == 0:
        raise checks.fail(op, "packed", "[..., C / 8] with C > 0", list(packed.shape))
    checks.dtype(op, "weight", weight, checks.FLOATS)
    checks.rank(op, "weight", weight, 2, 2)
    checks.shape(op, "weight", weight, (weight.shape[0], packed.shape[-1] * 8), "[F, C]")
    if bias is not None:
        checks.dtype(op, "bias", bias, (weight.dtype,))
        checks.shape(op, "bias", bias, (weight.shape[0],), "[F]")
    checks.same_device(op, "packed", packed, weight=weight, bias=bias)


def _fake(packed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return weight.new_empty((*packed.shape[:-1], weight.shape[0]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    packed, weight, bias, backend = inputs
    ctx.save_for_backward(packed, weight)
    ctx.settings = (bias is not None, backend)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    has_bias, backend = ctx.settings
    grad_weight, grad_bias = _backward_op.call(grad, *ctx.saved_tensors, backend)
    return None, grad_weight, grad_bias if has_bias else None, None


_op = KernelOp(
    "packed_linear",
    "(Tensor packed, Tensor weight, Tensor? bias) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("weight", "bias"),
)


def _check_backward(grad: torch.Tensor, packed: torch.Tensor, weight: torch.Tensor) -> None:
    op = "packed_linear_backward"
    _check(packed, weight, None)
    checks.dtype(op, "grad", grad, checks.FLOATS)
    checks.shape(op, "grad", grad, (*packed.shape[:-1], weight.shape[0]), "[..., F]")
    checks.same_device(op, "packed", packed, grad=grad)


def _fake_backward(
    grad: torch.Tensor, packed: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


_backward_op = KernelOp(
    "packed_linear_backward",
    "(Tensor grad, Tensor packed, Tensor weight) -> (Tensor, Tensor)",
    package=__package__,
    check=_check_backward,
    fake=_fake_backward,
    order=_ORDER,
    entry="_backward",
    is_backward=True,
)
