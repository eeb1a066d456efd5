"""adaln_linear and adaln_linear_swiglu: the public functions and the ops' contracts."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import linear_checks, packed_weight
from bitdance_kernels._shared import moments as moments_of_parts
from bitdance_kernels.denoise._shared import modulated_norm

__all__ = ["adaln_linear", "adaln_linear_swiglu"]


def adaln_linear(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    *,
    moments: torch.Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> torch.Tensor:
    """``adaln_norm`` and the linear layer that reads it, in one pass over the weights.

        n = (norm_weight (x - mean) / sqrt(var + eps) + norm_bias) (1 + scale) + shift
        y = n W^T + b

    It is for few rows, where a product waits for its weights and the norm is done meanwhile. With
    many rows each tile of features repeats it: call the two ops then.

    Args:
        x: [..., C], floating point, any strides.
        scale: of the shape of `x` or broadcast to it ([C], [B, 1, C]), any floating dtype; usually
            a strided chunk.
        shift: as `scale`.
        weight: [F, C] of the dtype of `x`, or what ``pack_weight`` makes of it, with the layout
            "rows", in float8 too, or "panels".
        bias: [F] of the dtype of `x`, or None for 0.
        norm_weight: [C] or None for 1, any floating dtype.
        norm_bias: [C] or None for 0, any floating dtype.
        moments: those of `x`, as ``linear_gated_residual`` returns them: float32 [..., C / 16, 2].
            They spare a pass over `x` and change nothing else.
        eps: added to the (biased) variance.
        backend: "auto", "reference", "cpu" or "cuda".

    Returns:
        [..., F] of the dtype of `x`, contiguous.

    Raises:
        TypeError: an argument is not floating point, or `weight` or `bias` not of the dtype of `x`.
        ValueError: shapes or devices do not fit.
        RuntimeError: an argument requires grad. For training there are ``adaln_norm`` and
            ``F.linear``.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        n is rounded to the dtype of `x`, as by ``adaln_norm``; sums are float32 (float64 for
        float64), rounded once. Autocast casts `x`, `weight` and `bias` to its dtype first; to norm
        a float32 `x` under it, call ``adaln_norm`` and ``linear``.

    Backends:
        reference, which is two passes, and unpacks a packed weight; C++ on the CPU for
        float32 in panels; CUDA C++ for a weight packed for tensor cores, up to 128 rows and float16
        or bfloat16 (norms may differ), on cards of capability 9.0 or 10.x.
    """
    return _op.call(x, scale, shift, weight, bias, norm_weight, norm_bias, moments, eps, backend)


def adaln_linear_swiglu(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    *,
    moments: torch.Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> torch.Tensor:
    """``adaln_linear`` and the SwiGLU gate of its result: y = silu(h1) h2, [h1 | h2] = n W^T + b.

    Args:
        x: as for ``adaln_linear``.
        scale: as for ``adaln_linear``.
        shift: as for ``adaln_linear``.
        weight: [2F, C], the gate's half first, or what ``pack_weight`` makes of it,
            with the layout "swiglu", in float8 too, or "panels".
        bias: [2F] or None for 0.
        norm_weight: as for ``adaln_linear``.
        norm_bias: as for ``adaln_linear``.
        moments: as for ``adaln_linear``.
        eps: as for ``adaln_linear``.
        backend: "auto", "reference", "cpu" or "cuda".

    Returns:
        [..., F] of the dtype of `x`, contiguous.

    Raises:
        TypeError: as for ``adaln_linear``.
        ValueError: as for ``adaln_linear``.
        RuntimeError: as for ``adaln_linear``.
        BackendError: as for ``adaln_linear``.

    Numerics:
        As for ``adaln_linear``; the reference rounds h.

    Backends:
        As for ``adaln_linear``.
    """
    return _swiglu_op.call(
        x, scale, shift, weight, bias, norm_weight, norm_bias, moments, eps, backend
    )


def _check_both(
    op: str,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    moments: torch.Tensor | None,
) -> None:
    linear_checks.check(op, x, weight, bias, swiglu=op == "adaln_linear_swiglu", panels=True)
    modulated_norm.check(op, x, scale, shift, norm_weight, norm_bias, prefix="norm_")
    moments_of_parts.check(op, x, moments)


def _check(*arguments: Any) -> None:
    _check_both("adaln_linear", *arguments[:-1])


def _fake(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor, *_: Any
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed_weight.features(weight)))


_SCHEMA = (
    "(Tensor x, Tensor scale, Tensor shift, Tensor weight, Tensor? bias, Tensor? norm_weight, "
    "Tensor? norm_bias, Tensor? moments, float eps) -> Tensor"
)
_ORDER = {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")}

_CAST = ("x", "weight", "bias")

_op = KernelOp(
    "adaln_linear",
    _SCHEMA,
    package=__package__,
    check=_check,
    fake=_fake,
    broadcast={"scale": ("x", None), "shift": ("x", None)},
    order=_ORDER,
    autocast=_CAST,
)


def _check_swiglu(*arguments: Any) -> None:
    _check_both("adaln_linear_swiglu", *arguments[:-1])


def _fake_swiglu(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor, *_: Any
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed_weight.features(weight) // 2))


_swiglu_op = KernelOp(
    "adaln_linear_swiglu",
    _SCHEMA,
    package=__package__,
    check=_check_swiglu,
    fake=_fake_swiglu,
    broadcast={"scale": ("x", None), "shift": ("x", None)},
    order=_ORDER,
    autocast=_CAST,
    entry="_swiglu",
)
