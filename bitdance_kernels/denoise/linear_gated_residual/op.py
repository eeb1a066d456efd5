"""linear_gated_residual: the public function and the op's contracts."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks, linear_checks, moments, packed_weight

__all__ = ["linear_gated_residual"]


@overload
def linear_gated_residual(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None = None,
    *,
    return_moments: Literal[False] = False,
    backend: str = "auto",
) -> torch.Tensor: ...


@overload
def linear_gated_residual(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None = None,
    *,
    return_moments: Literal[True],
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


def linear_gated_residual(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None = None,
    *,
    return_moments: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The linear layer that ends a branch, added to the stream: y = residual + gate (x W^T + b).

    Args:
        x: [..., C], floating point, any strides.
        weight: [F, C] of the dtype of `x`, or what ``pack_weight`` makes of it, with the layout
            "rows", in float8 too, or "panels".
        bias: [F] of the dtype of `x`, or None for 0.
        residual: [..., F], any floating dtype.
        gate: [..., F] or broadcast to it ([F], [B, 1, F]), any floating dtype; usually a strided
            chunk of one [..., 6F] or [..., 3F]. None for 1.
        return_moments: whether to return the moments of y as well, for the norm that follows; F is
            a multiple of 16 then.
        backend: "auto", "reference", "cpu" or "cuda".

    Returns:
        y [..., F] of the dtype of `residual`, contiguous; with `return_moments` (y, moments), the
        latter float32 (float64 for float64) [..., F / 16, 2]: of every 16 adjacent channels of a
        row the mean, and the sum of squared deviations from it.

    Raises:
        TypeError: an argument is not floating point, or `weight` or `bias` not of the dtype of `x`.
        ValueError: shapes or devices do not fit.
        RuntimeError: an argument requires grad. For training there are ``F.linear`` and
            ``gated_residual``.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Sums are float32 (float64 for float64); the reference rounds the product too. Moments are
        those of the rounded y. Autocast casts `x`, `weight` and `bias` to its dtype; `residual`,
        and with it the result, keep theirs.

    Backends:
        reference, which is PyTorch's product and a pass over its result, and unpacks a packed
        weight; C++ on the CPU for float32 in panels; CUDA C++ for a weight packed for tensor cores,
        up to 128 rows and float16 or bfloat16 throughout, on cards of capability 9.0 or 10.x.
    """
    returned = arguments.boolean("linear_gated_residual", "return_moments", return_moments)
    op = _moments_op if returned else _op
    return op.call(x, weight, bias, residual, gate, backend)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> None:
    op = "linear_gated_residual"
    linear_checks.check(op, x, weight, bias, panels=True)
    shape = (*x.shape[:-1], packed_weight.features(weight))
    checks.dtype(op, "residual", residual, checks.FLOATS)
    checks.shape(op, "residual", residual, shape, "[..., F]")
    if gate is not None:
        checks.dtype(op, "gate", gate, checks.FLOATS)
        checks.broadcast(op, "gate", gate, shape, "[..., F]")
    checks.same_device(op, "x", x, residual=residual, gate=gate)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    return residual.new_empty(residual.shape)


_ARGUMENTS = "(Tensor x, Tensor weight, Tensor? bias, Tensor residual, Tensor? gate)"
_ORDER = {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")}
_CAST = ("x", "weight", "bias")

_op = KernelOp(
    "linear_gated_residual",
    f"{_ARGUMENTS} -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    broadcast={"gate": ("residual", None)},
    order=_ORDER,
    autocast=_CAST,
)


def _check_moments(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> None:
    _check(x, weight, bias, residual, gate)
    expected = "[..., F] with F a multiple of 16 where moments are returned"
    moments.check_parts("linear_gated_residual", "residual", residual.shape, expected)


def _fake_moments(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    y = _fake(*inputs)
    return y, moments.fake(y)


_moments_op = KernelOp(
    "linear_gated_residual_moments",
    f"{_ARGUMENTS} -> (Tensor, Tensor)",
    package=__package__,
    check=_check_moments,
    fake=_fake_moments,
    broadcast={"gate": ("residual", None)},
    order=_ORDER,
    entry="_moments",
    called="linear_gated_residual",
    autocast=_CAST,
)
