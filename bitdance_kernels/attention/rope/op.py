"""rope: the public function and the contracts of the op and its backward."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks

__all__ = ["rope"]


def rope(
    x: torch.Tensor, freqs: torch.Tensor, *, interleaved: bool = True, backend: str = "auto"
) -> torch.Tensor:
    """Rotary position embedding: rotate pairs of channels by the angles of their position.

    ``a' = a cos - b sin, b' = a sin + b cos`` for every pair (a, b) of a head, where (cos, sin) =
    freqs[t, i] for token t and pair i. For training; while decoding ``rope_append`` does this and
    fills the cache. Differentiable in `x`; `freqs` is a constant table.

    Args:
        x: [B, T, H, D], float32, float16, bfloat16 or float64, D even; any strides.
        freqs: [T, D / 2, 2], floating point: cosine and sine of each token's angles.
        interleaved: pair i is channels (2 i, 2 i + 1), as in BitDance's ImageNet models; False:
            channels (i, i + D / 2), as in Qwen3.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [B, T, H, D] of the dtype of `x`, contiguous.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: shapes or devices that do not fit together.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Computed in float32 (float64 for float64) and rounded once.

    Backends:
        reference; C++ on the CPU and triton, forward and backward.

    Example:
        >>> import torch
        >>> quarter_turn = torch.tensor([[[0.0, 1.0]]])
        >>> rope(torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), quarter_turn).flatten()
        tensor([-2.,  1.])
    """
    return _op.call(x, freqs, interleaved, backend)


def _check(x: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> None:
    _check_as("rope", "x", x, freqs)


def _check_as(op: str, argument: str, x: torch.Tensor, freqs: torch.Tensor) -> None:
    checks.dtype(op, argument, x, checks.FLOATS)
    checks.dtype(op, "freqs", freqs, checks.FLOATS)
    checks.rank(op, argument, x, 4, 4)
    _, T, _, D = x.shape
    if D == 0 or D % 2 != 0:
        raise checks.fail(op, argument, "[B, T, H, D] with D even", f"shape {list(x.shape)}")
    checks.shape(op, "freqs", freqs, (T, D // 2, 2), "[T, D / 2, 2]")
    checks.same_device(op, argument, x, freqs=freqs)


def _fake(x: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> torch.Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, freqs, ctx.interleaved, ctx.backend = inputs
    ctx.save_for_backward(freqs)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (freqs,) = ctx.saved_tensors
    return _op_backward.call(grad, freqs, ctx.interleaved, ctx.backend), None, None, None


_ORDER = {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")}

_op = KernelOp(
    "rope",
    "(Tensor x, Tensor freqs, bool interleaved) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
    backward=_backward,
    setup_context=_setup_context,
    constants=("freqs",),
)


def _check_backward(grad: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> None:
    _check_as("rope_backward", "grad", grad, freqs)


_op_backward = KernelOp(
    "rope_backward",
    "(Tensor grad, Tensor freqs, bool interleaved) -> Tensor",
    package=__package__,
    check=_check_backward,
    fake=_fake,
    order=_ORDER,
    entry="_backward",
    is_backward=True,
)
