"""adaln_norm: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels.denoise._shared import modulated_norm

__all__ = ["adaln_norm"]


def adaln_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-6,
    backend: str = "auto",
) -> torch.Tensor:
    """LayerNorm over the channels, then scale and shift per token (adaLN).

        n = weight (x - mean) / sqrt(var + eps) + bias
        y = n (1 + scale) + shift

    Args:
        x: [..., C], floating point, any strides.
        scale: of the shape of `x` or broadcast to it ([C], [B, 1, C]), any floating dtype; usually
            a strided chunk of one [..., 6C] or [..., 3C] tensor.
        shift: as `scale`.
        weight: [C] or None for 1.
        bias: [C] or None for 0.
        eps: added to the (biased) variance.
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
        reference; C++ on the CPU (halves up to C = 8192); triton and cuda (C <= 8192). All but the
        reference take float32, float16 and bfloat16, mixed at will.
    """
    return _op.call(x, scale, shift, weight, bias, eps, backend)


def _check(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> None:
    modulated_norm.check("adaln_norm", x, scale, shift, weight, bias)


def _fake(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, eps, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = (eps, backend)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    arguments = ctx.saved_tensors
    gradients = _backward_op.call(grad, *arguments, *ctx.settings)
    given = (g if a is not None else None for g, a in zip(gradients, arguments, strict=True))
    return *given, None, None


_op = KernelOp(
    "adaln_norm",
    "(Tensor x, Tensor scale, Tensor shift, Tensor? weight, Tensor? bias, float eps) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    broadcast={"scale": ("x", None), "shift": ("x", None)},
    order={"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")},
    setup_context=_setup_context,
    backward=_backward,
)


def _check_backward(grad: torch.Tensor, x: torch.Tensor, *others: Any) -> None:
    _check(x, *others)
    checks.dtype("adaln_norm_backward", "grad", grad, checks.FLOATS)
    checks.shape("adaln_norm_backward", "grad", grad, x.shape, "that of x")
    checks.same_device("adaln_norm_backward", "x", x, grad=grad)


def _fake_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    return tuple(modulated_norm.fake_as_given(x, t) for t in (x, scale, shift, weight, bias))


_backward_op = KernelOp(
    "adaln_norm_backward",
    "(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor? weight, Tensor? bias, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    package=__package__,
    check=_check_backward,
    fake=_fake_backward,
    order={"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")},
    entry="_backward",
    is_backward=True,
)
