"""rms_norm_linear and rms_norm_linear_swiglu: the public functions and the ops' contracts."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import linear_checks, packed_weight, rms_norm
from bitdance_kernels._shared import moments as moments_of_parts

__all__ = ["rms_norm_linear", "rms_norm_linear_swiglu"]


def rms_norm_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    *,
    moments: torch.Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> torch.Tensor:
    """RMSNorm and the linear layer that reads it, in one pass over the weights.

        n = norm_weight x / sqrt(mean(x^2) + eps)
        y = n W^T + b

    It is for few rows, as ``adaln_linear``.

    Args:
        x: [..., C], floating point, any strides.
        weight: [F, C] of the dtype of `x`, or what ``pack_weight`` makes of it, with the layout
            "rows", in float8 too, or "panels".
        bias: [F] of the dtype of `x`, or None for 0.
        norm_weight: [C] or None for 1, any floating dtype.
        moments: those of `x`, as ``linear_gated_residual`` returns them: float32 [..., C / 16, 2].
            They spare a pass over `x` and change nothing else.
        eps: added to the mean square.
        backend: "auto", "reference", "cpu" or "cuda".

    Returns:
        [..., F] of the dtype of `x`, contiguous.

    Raises:
        TypeError: an argument is not floating point, or `weight` or `bias` not of the dtype of `x`.
        ValueError: shapes or devices do not fit.
        RuntimeError: an argument requires grad. For training there are ``F.rms_norm`` and
            ``F.linear``.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        n is rounded to the dtype of `x`; sums are float32 (float64 for float64), rounded once.
        Autocast casts `x`, `weight` and `bias` to its dtype first.

    Backends:
        reference, which is two passes, and unpacks a packed weight; C++ on the CPU for
        float32 in panels; CUDA C++ for a weight packed for tensor cores, up to 128 rows and float16
        or bfloat16 (norms may differ), on cards of capability 9.0 or 10.x.
    """
    return _op.call(x, weight, bias, norm_weight, moments, eps, backend)


def rms_norm_linear_swiglu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    *,
    moments: torch.Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> torch.Tensor:
    """``rms_norm_linear`` and the SwiGLU gate: y = silu(h1) h2, [h1 | h2] = n W^T + b.

    Args:
        x: as for ``rms_norm_linear``.
        weight: [2F, C], the gate's half first, or what ``pack_weight`` makes of it,
            with the layout "swiglu", in float8 too, or "panels".
        bias: [2F] or None for 0.
        norm_weight: as for ``rms_norm_linear``.
        moments: as for ``rms_norm_linear``.
        eps: as for ``rms_norm_linear``.
        backend: "auto", "reference", "cpu" or "cuda".

    Returns:
        [..., F] of the dtype of `x`, contiguous.

    Raises:
        TypeError: as for ``rms_norm_linear``.
        ValueError: as for ``rms_norm_linear``.
        RuntimeError: as for ``rms_norm_linear``.
        BackendError: as for ``rms_norm_linear``.

    Numerics:
        As for ``rms_norm_linear``; the reference rounds h.

    Backends:
        As for ``rms_norm_linear``.
    """
    return _swiglu_op.call(x, weight, bias, norm_weight, moments, eps, backend)


def _check_both(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    moments: torch.Tensor | None,
) -> None:
    linear_checks.check(op, x, weight, bias, swiglu=op == "rms_norm_linear_swiglu", panels=True)
    rms_norm.check(op, x, norm_weight)
    moments_of_parts.check(op, x, moments)


def _check(*arguments: Any) -> None:
    _check_both("rms_norm_linear", *arguments[:-1])


def _fake(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed_weight.features(weight)))


_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? moments, float eps) "
    "-> Tensor"
)
_ORDER = {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")}
_CAST = ("x", "weight", "bias")

_op = KernelOp(
    "rms_norm_linear",
    _SCHEMA,
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
    autocast=_CAST,
)


def _check_swiglu(*arguments: Any) -> None:
    _check_both("rms_norm_linear_swiglu", *arguments[:-1])


def _fake_swiglu(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed_weight.features(weight) // 2))


_swiglu_op = KernelOp(
    "rms_norm_linear_swiglu",
    _SCHEMA,
    package=__package__,
    check=_check_swiglu,
    fake=_fake_swiglu,
    order=_ORDER,
    autocast=_CAST,
    entry="_swiglu",
)
