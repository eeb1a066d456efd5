"""swiglu: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks

__all__ = ["swiglu"]

_ORDER = {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")}


def swiglu(h: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """The gate of a SwiGLU block: y = silu(h1) h2, with h = [h1 | h2] and silu(a) = a sigmoid(a).

    Args:
        h: [..., 2F], floating point, any strides: the first product of the block, gate half first.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [..., F] of the dtype of `h`, contiguous.

    Raises:
        TypeError: `h` is not floating point.
        ValueError: the last dimension is odd, or there is none.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Computed in float32 (float64 for float64) and rounded once. Differentiable.

    Backends:
        reference; C++ on the CPU for float32, float16 and bfloat16; Triton on the GPU.
    """
    return _op.call(h, backend)


def _check(h: torch.Tensor) -> None:
    checks.dtype("swiglu", "h", h, checks.FLOATS)
    checks.rank("swiglu", "h", h, 1)
    if h.shape[-1] % 2 != 0:
        raise checks.fail("swiglu", "h", "[..., 2F]", f"shape {list(h.shape)}")


def _fake(h: torch.Tensor) -> torch.Tensor:
    return h.new_empty((*h.shape[:-1], h.shape[-1] // 2))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    h, backend = inputs
    ctx.save_for_backward(h)
    ctx.backend = backend


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (h,) = ctx.saved_tensors
    return _backward_op.call(grad, h, ctx.backend), None


_op = KernelOp(
    "swiglu",
    "(Tensor h) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
    setup_context=_setup_context,
    backward=_backward,
)


def _check_backward(grad: torch.Tensor, h: torch.Tensor) -> None:
    op = "swiglu_backward"
    _check(h)
    checks.dtype(op, "grad", grad, checks.FLOATS)
    checks.shape(op, "grad", grad, (*h.shape[:-1], h.shape[-1] // 2), "[..., F]")
    checks.same_device(op, "h", h, grad=grad)


def _fake_backward(grad: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return h.new_empty(h.shape)


_backward_op = KernelOp(
    "swiglu_backward",
    "(Tensor grad, Tensor h) -> Tensor",
    package=__package__,
    check=_check_backward,
    fake=_fake_backward,
    order=_ORDER,
    entry="_backward",
    is_backward=True,
)
