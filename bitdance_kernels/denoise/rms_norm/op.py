"""rms_norm: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels._shared import rms_norm as shared

__all__ = ["rms_norm"]


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, *, eps: float = 1e-6, backend: str = "auto"
) -> torch.Tensor:
    """RMSNorm of rows: y = x / sqrt(mean(x^2) + eps) * weight.

    For few rows on the CPU, where PyTorch computes it in six passes. On a card take
    ``torch.nn.functional.rms_norm``, or an op that has the norm before a product.

    Args:
        x: [..., C], floating point, any strides.
        weight: [C] of any floating dtype, or None for 1.
        eps: added to the mean.
        backend: "auto", "reference" or "cpu".

    Returns:
        [..., C] of the dtype of `x`, contiguous.

    Raises:
        TypeError: `x` or `weight` is not floating point.
        ValueError: shapes or devices do not fit, or C is 0.
        RuntimeError: an argument requires grad.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        In float32 (float64 for float64), rounded once; C++ sums in float64. A row of a batch is the
        row alone.

    Backends:
        reference; C++ on the CPU for float32, float16 and bfloat16.

    Example:
        >>> import torch
        >>> rms_norm(torch.tensor([3.0, -3.0]), torch.tensor([1.0, 2.0]), eps=0.0)
        tensor([ 1., -2.])
    """
    return _op.call(x, weight, eps, backend)


def _check(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> None:
    checks.dtype("rms_norm", "x", x, checks.FLOATS)
    checks.rank("rms_norm", "x", x, 1)
    if x.shape[-1] == 0:
        raise checks.fail("rms_norm", "x", "[..., C] with C > 0", f"shape {list(x.shape)}")
    shared.check("rms_norm", x, weight, name="weight")


def _fake(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    return x.new_empty(x.shape)


_op = KernelOp(
    "rms_norm",
    "(Tensor x, Tensor? weight, float eps) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("reference",), "cpu": ("cpu", "reference")},
)
