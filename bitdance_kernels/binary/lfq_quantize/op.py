"""lfq_quantize: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks

__all__ = ["lfq_quantize", "lfq_quantize_commitment"]

_ORDER = {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")}


def lfq_quantize(x: torch.Tensor, *, backend: str = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """Look-up-free quantisation: q = +1 where x > 0, else -1, and the same as packed bits.

    Zeros and NaN give -1. The gradient is straight-through: that of `quantized` is handed to `x` as
    it is.

    Args:
        x: [..., C], floating point, C a positive multiple of 8; any strides.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        quantized, [..., C] of the dtype of `x`, and packed, uint8 [..., C / 8], both contiguous.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: C is not a positive multiple of 8, or `x` has no dimension.
        BackendError: a backend named explicitly cannot run the call.

    Backends:
        reference; C++ on the CPU (AVX2, AVX-512) and Triton, one pass each.
    """
    return _op.call(x, backend)


def lfq_quantize_commitment(
    x: torch.Tensor, *, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``lfq_quantize`` and, from the same pass, the commitment loss mean (x - q)^2.

    q is a constant in the loss, whose gradient 2 (x - q) / N comes on top of the straight-through
    one.

    Args:
        x: [..., C], floating point, C a positive multiple of 8; any strides.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        quantized and packed, as ``lfq_quantize`` gives them, and the commitment, a scalar of the
        dtype of `x`; NaN if `x` is empty.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: C is not a positive multiple of 8, or `x` has no dimension.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        In float32 (float64 for float64).

    Backends:
        reference; C++ on the CPU for float32 (AVX2, AVX-512) and Triton, one pass each.
    """
    return _commitment_op.call(x, backend)


def _check(x: torch.Tensor, op: str = "lfq_quantize") -> None:
    checks.dtype(op, "x", x, checks.FLOATS)
    checks.channels(op, "x", x)


def _fake(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    packed = x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)
    return x.new_empty(x.shape), packed


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[1])


def _backward(
    ctx: Any, grad: torch.Tensor, _: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    return grad, None


_op = KernelOp(
    "lfq_quantize",
    "(Tensor x) -> (Tensor, Tensor)",
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
    setup_context=_setup_context,
    backward=_backward,
)


def _check_commitment(x: torch.Tensor) -> None:
    _check(x, "lfq_quantize_commitment")


def _fake_commitment(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return *_fake(x), x.new_empty(())


def _setup_commitment(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[1])
    x, ctx.backend = inputs
    ctx.save_for_backward(x)


def _backward_of_commitment(
    ctx: Any, grad: torch.Tensor, _: torch.Tensor | None, grad_commitment: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return _commitment_backward_op.call(grad, grad_commitment, x, ctx.backend), None


_commitment_op = KernelOp(
    "lfq_quantize_commitment",
    "(Tensor x) -> (Tensor, Tensor, Tensor)",
    package=__package__,
    check=_check_commitment,
    fake=_fake_commitment,
    order=_ORDER,
    entry="_commitment",
    setup_context=_setup_commitment,
    backward=_backward_of_commitment,
)


def _check_commitment_backward(
    grad: torch.Tensor, grad_commitment: torch.Tensor, x: torch.Tensor
) -> None:
    op = "lfq_quantize_commitment_backward"
    _check(x, op)
    for name, value, like in (("grad", grad, x.shape), ("grad_commitment", grad_commitment, ())):
        checks.dtype(op, name, value, checks.FLOATS)
        checks.shape(op, name, value, like)
    checks.same_device(op, "x", x, grad=grad, grad_commitment=grad_commitment)


def _fake_commitment_backward(
    grad: torch.Tensor, grad_commitment: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    return x.new_empty(x.shape)


_commitment_backward_op = KernelOp(
    "lfq_quantize_commitment_backward",
    "(Tensor grad, Tensor grad_commitment, Tensor x) -> Tensor",
    package=__package__,
    check=_check_commitment_backward,
    fake=_fake_commitment_backward,
    order=_ORDER,
    entry="_commitment_backward",
    is_backward=True,
)
