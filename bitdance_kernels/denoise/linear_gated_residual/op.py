"""linear_gated_residual: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels.denoise._shared import linear_checks

__all__ = ["linear_gated_residual"]


def linear_gated_residual(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """The linear layer that ends a branch, added to the stream: y = residual + gate (x W^T + b).

    Args:
        x: [..., C], floating point, any strides.
        weight: [F, C] of the dtype of `x`.
        bias: [F] of the dtype of `x`, or None for 0.
        residual: [..., F], any floating dtype.
        gate: [..., F] or broadcast to it ([F], [B, 1, F]), any floating dtype; usually a strided
            chunk of one [..., 6F] or [..., 3F].
        backend: "auto", "reference" or "triton".

    Returns:
        [..., F] of the dtype of `residual`, contiguous.

    Raises:
        TypeError: an argument is not floating point, or `weight` or `bias` not of the dtype of `x`.
        ValueError: shapes or devices do not fit.
        RuntimeError: an argument requires grad. For training there are ``F.linear`` and
            ``gated_residual``.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Triton sums in float32 and rounds once at the end; the reference rounds the product too.
        Autocast casts `x`, `weight` and `bias` to its dtype; `residual`, and with it the result,
        keep theirs.

    Backends:
        reference, which is PyTorch's product and a pass over its result; Triton, one kernel for
        float32, float16 and bfloat16.
    """
    return _op.call(x, weight, bias, residual, gate, backend)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor,
) -> None:
    op = "linear_gated_residual"
    linear_checks.check(op, x, weight, bias)
    for name, tensor in (("residual", residual), ("gate", gate)):
        checks.dtype(op, name, tensor, checks.FLOATS)
    shape = (*x.shape[:-1], weight.shape[0])
    checks.shape(op, "residual", residual, shape, "[..., F]")
    checks.broadcast(op, "gate", gate, shape, "[..., F]")
    checks.same_device(op, "x", x, residual=residual, gate=gate)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor,
) -> torch.Tensor:
    return residual.new_empty(residual.shape)


_op = KernelOp(
    "linear_gated_residual",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor residual, Tensor gate) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    broadcast={"gate": ("residual", None)},
    order={"cuda": ("triton", "reference"), "cpu": ("reference",)},
    autocast=("x", "weight", "bias"),
)
