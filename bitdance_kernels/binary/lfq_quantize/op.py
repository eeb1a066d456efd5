"""lfq_quantize: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels import _checks
from bitdance_kernels._op import KernelOp

__all__ = ["lfq_quantize"]


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


def _check(x: torch.Tensor) -> None:
    _checks.dtype("lfq_quantize", "x", x, _checks.FLOATS)
    _checks.channels("lfq_quantize", "x", x)


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
    room=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")},
    setup_context=_setup_context,
    backward=_backward,
)
