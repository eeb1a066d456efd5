"""linear: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks, linear_checks, packed_weight

__all__ = ["linear"]


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """A linear layer: y = x W^T + b.

    A library's product brings matrices into another order first, which pays for many rows. The C++
    product here does not, and is for few, such as those of a step of a sampler. Where a weight
    serves more than once it is faster in panels, ``pack_weight(weight, "panels")``; and for few
    rows, whose time goes into reading it, in panels of int8 values.

    Args:
        x: [..., C], floating point, any strides.
        weight: [F, C] of the dtype of `x`, or what ``pack_weight`` makes of it, with the layout
            "rows", in float8 too, or "panels", in int8 too.
        bias: [F] of the dtype of `x`, or None for 0.
        out: [..., F] of the dtype of `x`, where the result goes; it must not overlap the others.
            None for a new tensor. As PyTorch's own functions with ``out=``, the call has no
            gradient then and takes no part in autocast.
        backend: "auto", "reference", "cpu" or "cuda".

    Returns:
        `out`, or a new contiguous tensor like it.

    Raises:
        TypeError: `x` is not floating point, or another tensor of another dtype.
        ValueError: shapes or devices do not fit.
        RuntimeError: with `out`, an argument requires grad.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        C++ sums in float32, in an order that depends on the form of the weight, and for a matrix on
        the width of the processor's vectors, but not on the number of rows or threads: a row of a
        batch is the row alone. Packed float8 and int8 weights are their values times the scales.
        Differentiable in `x`, `weight` and `bias`, by PyTorch's products. Under autocast the three
        are cast to its dtype, as by ``F.linear``.

    Backends:
        reference, which is PyTorch's product, and unpacks a packed weight; C++ on the CPU for
        float32 in panels, or in a matrix and up to 512 rows, and for panels of int8 values; CUDA
        C++ for a weight packed for tensor cores, up to 128 rows of float16 or bfloat16, on cards of
        capability 9.0 or 10.x.

    Example:
        >>> import torch
        >>> linear(torch.ones(1, 3), torch.ones(2, 3), torch.tensor([0.0, 1.0]))
        tensor([[3., 4.]])
    """
    if out is None:
        return _op.call(x, weight, bias, backend)
    _out_op.call(x, weight, bias, out, backend)
    return out


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    linear_checks.check("linear", x, weight, bias, panels=True)


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed_weight.features(weight)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Gradients by the library's products, as in the backward of ``F.linear``."""
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = None
    rows = _rows(grad)
    if ctx.needs_input_grad[0]:
        grad_x = grad @ packed_weight.matrix(weight, dtype=grad.dtype)
    if ctx.needs_input_grad[1]:
        grad_weight = packed_weight.like(weight, rows.t() @ _rows(x))
    grad_bias = rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
    return grad_x, grad_weight, grad_bias, None


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


_ORDER = {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")}

_op = KernelOp(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
    backward=_backward,
    setup_context=_setup_context,
    autocast=("x", "weight", "bias"),
)


def _check_out(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    _check(x, weight, bias)
    checks.dtype("linear", "out", out, (x.dtype,))
    checks.shape("linear", "out", out, (*x.shape[:-1], packed_weight.features(weight)), "[..., F]")
    checks.same_device("linear", "x", x, out=out)


def _fake_out(*_: Any) -> None:
    return None


# An op of its own: `linear` has a result, so that functional programs can hold it.
_out_op = KernelOp(
    "linear_out",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()",
    package=__package__,
    check=_check_out,
    fake=_fake_out,
    order=_ORDER,
    entry="_out",
    called="linear",
)
