"""gated_residual and gated_residual_adaln: the public functions and the ops' contracts."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels.denoise._shared import modulated_norm

__all__ = ["gated_residual", "gated_residual_adaln"]

_ORDER = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")}


def gated_residual(
    x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """Add a branch to the stream through a gate: y = x + gate h.

    Args:
        x: [..., C], floating point, any strides.
        h: of the shape of `x`, any floating dtype.
        gate: as `h`, or broadcast to it ([C], [B, 1, C]); usually a strided chunk of one [..., 6C]
            or [..., 3C] tensor.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [..., C] of the dtype of `x`, contiguous.

    Raises:
        TypeError: an argument is not floating point.
        ValueError: shapes or devices do not fit.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Computed in float32 (float64 for float64) and rounded once. Differentiable in every tensor.

    Backends:
        reference; C++ on the CPU; triton and cuda (C <= 8192). All but the reference take float32,
        float16 and bfloat16, mixed at will.
    """
    return _op.call(x, h, gate, backend)


def gated_residual_adaln(
    x: torch.Tensor,
    h: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """``gated_residual`` and the ``adaln_norm`` of its result, in one pass over the data.

        y = x + gate h
        z = LN(y) (1 + scale) + shift       LN with weight and bias, as in adaln_norm

    Args:
        x: [..., C], floating point, any strides.
        h: of the shape of `x`, any floating dtype.
        gate: as `h`, or broadcast to it ([C], [B, 1, C]).
        scale: as `gate`.
        shift: as `gate`.
        weight: [C] or None for 1.
        bias: [C] or None for 0.
        eps: added to the (biased) variance.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        (y, z), each [..., C] of the dtype of `x`, contiguous.

    Raises:
        TypeError: an argument is not floating point.
        ValueError: shapes or devices do not fit.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        y is rounded once; z is that of the rounded y, exactly as in two calls, and rounded once.
        Differentiable in every tensor.

    Backends:
        reference; C++ on the CPU (halves up to C = 8192); triton and cuda (C <= 8192). All but the
        reference take float32, float16 and bfloat16, mixed at will.
    """
    return _adaln_op.call(x, h, gate, scale, shift, weight, bias, eps, backend)


def _check_sum(op: str, x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> None:
    checks.dtype(op, "x", x, checks.FLOATS)
    checks.rank(op, "x", x, 1)
    for name, tensor in (("h", h), ("gate", gate)):
        checks.dtype(op, name, tensor, checks.FLOATS)
    checks.shape(op, "h", h, x.shape, "that of x")
    checks.broadcast(op, "gate", gate, x.shape, "that of x")
    checks.same_device(op, "x", x, h=h, gate=gate)


def _check(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> None:
    _check_sum("gated_residual", x, h, gate)


def _fake(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.backend = backend


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_backward_op.call(grad, *ctx.saved_tensors, ctx.backend), None


_op = KernelOp(
    "gated_residual",
    "(Tensor x, Tensor h, Tensor gate) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    broadcast={"gate": ("x", None)},
    order=_ORDER,
    setup_context=_setup_context,
    backward=_backward,
)


def _check_backward(grad: torch.Tensor, x: torch.Tensor, *others: torch.Tensor) -> None:
    op = "gated_residual_backward"
    _check_sum(op, x, *others)
    checks.dtype(op, "grad", grad, checks.FLOATS)
    checks.shape(op, "grad", grad, x.shape, "that of x")
    checks.same_device(op, "x", x, grad=grad)


def _fake_backward(
    grad: torch.Tensor, x: torch.Tensor, *others: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return tuple(modulated_norm.fake_as_given(x, tensor) for tensor in (x, *others))


_backward_op = KernelOp(
    "gated_residual_backward",
    "(Tensor grad, Tensor x, Tensor h, Tensor gate) -> (Tensor, Tensor, Tensor)",
    package=__package__,
    check=_check_backward,
    fake=_fake_backward,
    order=_ORDER,
    entry="_backward",
    is_backward=True,
)


def _check_adaln(
    x: torch.Tensor,
    h: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> None:
    op = "gated_residual_adaln"
    _check_sum(op, x, h, gate)
    modulated_norm.check(op, x, scale, shift, weight, bias)


def _fake_adaln(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _setup_adaln(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, *tensors, eps, backend = inputs
    # The sum takes the place of x: it has the gradient of x, and the norm reads it.
    ctx.save_for_backward(output[0], *tensors)
    ctx.settings = (eps, backend)


def _backward_adaln(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    arguments = ctx.saved_tensors
    gradients = _adaln_backward_op.call(*grads, *arguments, *ctx.settings)
    given = (g if a is not None else None for g, a in zip(gradients, arguments, strict=True))
    return *given, None, None


_adaln_op = KernelOp(
    "gated_residual_adaln",
    "(Tensor x, Tensor h, Tensor gate, Tensor scale, Tensor shift, Tensor? weight, Tensor? bias, "
    "float eps) -> (Tensor, Tensor)",
    package=__package__,
    check=_check_adaln,
    fake=_fake_adaln,
    broadcast={"gate": ("x", None), "scale": ("x", None), "shift": ("x", None)},
    order=_ORDER,
    entry="_adaln",
    setup_context=_setup_adaln,
    backward=_backward_adaln,
)


def _check_adaln_backward(
    grad_total: torch.Tensor, grad_normed: torch.Tensor, total: torch.Tensor, *others: Any
) -> None:
    op = "gated_residual_adaln_backward"
    _check_adaln(total, *others)
    for name, grad in (("grad_total", grad_total), ("grad_normed", grad_normed)):
        checks.dtype(op, name, grad, checks.FLOATS)
        checks.shape(op, name, grad, total.shape, "that of total")
    checks.same_device(op, "total", total, grad_total=grad_total, grad_normed=grad_normed)


def _fake_adaln_backward(
    grad_total: torch.Tensor, grad_normed: torch.Tensor, total: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, ...]:
    *tensors, _ = others
    return tuple(modulated_norm.fake_as_given(total, tensor) for tensor in (total, *tensors))


_adaln_backward_op = KernelOp(
    "gated_residual_adaln_backward",
    "(Tensor grad_total, Tensor grad_normed, Tensor total, Tensor h, Tensor gate, Tensor scale, "
    "Tensor shift, Tensor? weight, Tensor? bias, float eps) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    package=__package__,
    check=_check_adaln_backward,
    fake=_fake_adaln_backward,
    order=_ORDER,
    entry="_adaln_backward",
    is_backward=True,
)
