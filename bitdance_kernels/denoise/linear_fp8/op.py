"""linear_fp8: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks

__all__ = ["linear_fp8"]


def linear_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    quantize_x: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """A linear layer whose weight is in float8: y = x (scale W)^T + b.

    Args:
        x: [..., C], floating point, any strides.
        weight: uint8 [F, C], bits of float8_e4m3fn as ``quantize_rows`` returns them.
        weight_scale: float32 [F], the scales of its rows.
        bias: [F] of the dtype of `x`, or None for 0.
        quantize_x: whether the rows of `x` are rounded to float8 too, with scales of their own.
        backend: "auto", "reference" or "triton".

    Returns:
        [..., F] of the dtype of `x`, contiguous.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: shapes or devices do not fit.
        RuntimeError: an argument requires grad.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Of what was rounded to float8 the product is that of ``linear``. Sums of float8 products are
        promoted to float32 before they lose bits. Inference only. Under autocast `x` and `bias` are
        cast to its dtype.

    Backends:
        reference, which multiplies by the weight in the dtype of `x`; with `quantize_x` Triton for
        the rows and PyTorch's float8 product, on cards of capability 8.9 and later, for bfloat16
        and C and F that are multiples of 16.

    Example:
        >>> import torch
        >>> from bitdance_kernels import quantize_rows
        >>> weight, scale = quantize_rows(torch.tensor([[1.0, 2.0], [3.0, 100.0]]))
        >>> linear_fp8(torch.ones(1, 2), weight, scale)
        tensor([[ 3., 99.]])
    """
    return _op.call(x, weight, weight_scale, bias, quantize_x, backend)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    quantize_x: bool,
) -> None:
    op = "linear_fp8"
    checks.dtype(op, "x", x, checks.FLOATS)
    checks.rank(op, "x", x, 1)
    if x.shape[-1] == 0:
        raise checks.fail(op, "x", "[..., C] with C > 0", f"shape {list(x.shape)}")
    checks.dtype(op, "weight", weight, (torch.uint8,))
    checks.rank(op, "weight", weight, 2, 2)
    checks.shape(op, "weight", weight, (len(weight), x.shape[-1]), "[F, C]")
    checks.dtype(op, "weight_scale", weight_scale, (torch.float32, torch.float64))
    checks.shape(op, "weight_scale", weight_scale, (len(weight),), "[F]")
    if bias is not None:
        checks.dtype(op, "bias", bias, (x.dtype,))
        checks.shape(op, "bias", bias, (len(weight),), "[F]")
    checks.same_device(op, "x", x, weight=weight, weight_scale=weight_scale, bias=bias)


def _fake(x: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


_op = KernelOp(
    "linear_fp8",
    "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, bool quantize_x) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("triton", "reference"), "cpu": ("reference",)},
    autocast=("x", "bias"),
)
