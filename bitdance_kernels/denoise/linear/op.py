"""linear: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels import _checks
from bitdance_kernels._op import KernelOp
from bitdance_kernels.denoise import products

__all__ = ["linear"]


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """A linear layer: y = x W^T + b.

    A library's product brings matrices into another order first, which pays for many rows. The C++
    product here does not, and is for few, such as those of a step of a sampler.

    Args:
        x: [..., C], floating point, any strides.
        weight: [F, C] of the dtype of `x`.
        bias: [F] of the dtype of `x`, or None for 0.
        out: [..., F] of the dtype of `x`, where the result goes; it must not overlap the others.
            None for a new tensor.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        `out`, or a new contiguous tensor like it.

    Raises:
        TypeError: `x` is not floating point, or another tensor of another dtype.
        ValueError: shapes or devices do not fit.
        RuntimeError: an argument requires grad. For training there is ``F.linear``.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        C++ sums in float32, in an order that depends on the width of the processor's vectors but
        not on the number of rows or threads: a row of a batch is the row alone. Triton sums in
        float32 and rounds once.

    Backends:
        reference, which is PyTorch's product; C++ on the CPU for float32 and up to 512 rows; Triton
        for float32, float16 and bfloat16, which "auto" leaves aside for the library's.

    Example:
        >>> import torch
        >>> linear(torch.ones(1, 3), torch.ones(2, 3), torch.tensor([0.0, 1.0]))
        tensor([[3., 4.]])
    """
    if out is None:
        out = x.new_empty((*x.shape[:-1], *weight.shape[:1]))
    _op.call(x, weight, bias, out, backend)
    return out


def _check(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    products.check("linear", x, weight, bias)
    _checks.dtype("linear", "out", out, (x.dtype,))
    _checks.shape("linear", "out", out, (*x.shape[:-1], weight.shape[0]), "[..., F]")
    _checks.same_device("linear", "x", x, out=out)


def _fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    return None


_op = KernelOp(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()",
    room=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("reference", "triton"), "cpu": ("cpu", "reference")},
)
