"""group_norm_silu: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels.autoencode.group_norm_silu.reference import memory_format

__all__ = ["group_norm_silu"]

_NAME = "group_norm_silu"


def group_norm_silu(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    silu: bool = True,
    eps: float = 1e-6,
    backend: str = "auto",
) -> torch.Tensor:
    """GroupNorm, optionally scaled and shifted per image, optionally followed by SiLU.

        n = weight (x - mean) / sqrt(var + eps) + bias      mean, var over a group of channels
        z = scale n + shift                                 only with scale and shift
        y = z sigmoid(z)                                    only with silu

    The scale multiplies as it is, it is not offset by 1: this is the adaptive GroupNorm of
    BitDance's decoder, whose scale and shift are linear functions of the code's spatial statistics.

    Args:
        x: [B, C, H, W], floating point; contiguous, channels-last or any view.
        num_groups: divides C.
        weight: [C], floating point, or None for 1.
        bias: [C], floating point, or None for 0.
        scale: [B, C] or broadcast to it ([C], [1, C]), floating point; together with `shift`.
        shift: as `scale`.
        silu: whether SiLU follows.
        eps: added to the variance (biased, over C / num_groups channels and all positions).
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [B, C, H, W] of the dtype of `x`; channels-last if `x` is, else contiguous.

    Raises:
        TypeError: an argument is not floating point.
        ValueError: shapes or devices do not fit, `num_groups` does not divide C, or only one of
            `scale` and `shift` is given.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Computed in float32 (float64 for float64) and rounded once. Differentiable in every tensor.

    Backends:
        reference; C++ on the CPU, triton (any layout, at most 2048 channels a group) and cuda
        (channels-last) for float32, float16 and bfloat16, mixed at will.
    """
    return _op.call(x, num_groups, weight, bias, scale, shift, silu, eps, backend)


def _check(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    silu: bool,
    eps: float,
) -> None:
    checks.dtype(_NAME, "x", x, checks.FLOATS)
    checks.rank(_NAME, "x", x, 4, 4)
    batch, channels = x.shape[:2]
    if num_groups < 1 or channels % num_groups != 0 or channels == 0:
        raise checks.fail(_NAME, "num_groups", f"a divisor of C = {channels}", num_groups)
    if (scale is None) != (shift is None):
        got = "shift alone" if scale is None else "scale alone"
        raise checks.fail(_NAME, "scale and shift", "given together", got)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            checks.dtype(_NAME, name, tensor, checks.FLOATS)
            checks.shape(_NAME, name, tensor, (channels,), "[C]")
    for name, tensor in (("scale", scale), ("shift", shift)):
        if tensor is not None:
            checks.dtype(_NAME, name, tensor, checks.FLOATS)
            checks.broadcast(_NAME, name, tensor, (batch, channels), "[B, C]")
    checks.same_device(_NAME, "x", x, weight=weight, bias=bias, scale=scale, shift=shift)


def _fake(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, num_groups, weight, bias, scale, shift, silu, eps, backend = inputs
    ctx.save_for_backward(x, weight, bias, scale, shift)
    ctx.settings = (num_groups, silu, eps, backend)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight, bias, scale, shift = ctx.saved_tensors
    num_groups, silu, eps, backend = ctx.settings
    grads = _backward_op.call(grad, x, num_groups, weight, bias, scale, shift, silu, eps, backend)
    grad_x, *others = grads
    grad_others = [
        grad if given is not None else None
        for grad, given in zip(others, (weight, bias, scale, shift), strict=True)
    ]
    return grad_x, None, *grad_others, None, None, None


_op = KernelOp(
    _NAME,
    "(Tensor x, int num_groups, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, "
    "bool silu, float eps) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    broadcast={"scale": ("x", 2), "shift": ("x", 2)},
    order={"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")},
    setup_context=_setup_context,
    backward=_backward,
)


def _check_backward(grad: torch.Tensor, x: torch.Tensor, *rest: Any) -> None:
    _check(x, *rest)
    checks.dtype(f"{_NAME}_backward", "grad", grad, checks.FLOATS)
    checks.shape(f"{_NAME}_backward", "grad", grad, x.shape, "[B, C, H, W]")
    checks.same_device(f"{_NAME}_backward", "x", x, grad=grad)


def _fake_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    *_: Any,
) -> tuple[torch.Tensor, ...]:
    contiguous = torch.contiguous_format
    others = (
        x.new_empty(0) if t is None else torch.empty_like(t, memory_format=contiguous)
        for t in (weight, bias, scale, shift)
    )
    return torch.empty_like(x, memory_format=memory_format(x)), *others


_backward_op = KernelOp(
    f"{_NAME}_backward",
    "(Tensor grad, Tensor x, int num_groups, Tensor? weight, Tensor? bias, Tensor? scale, "
    "Tensor? shift, bool silu, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    package=__package__,
    check=_check_backward,
    fake=_fake_backward,
    order={"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")},
    entry="_backward",
    is_backward=True,
)
