"""linear_swiglu: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import linear_checks, packed_weight

__all__ = ["linear_swiglu"]


def linear_swiglu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """A linear layer and the SwiGLU gate of its result, which is never stored.

        [h1 | h2] = x W^T + b
        y         = silu(h1) h2

    Args:
        x: [..., C], floating point, any strides.
        weight: [2F, C] of the dtype of `x`, the gate's half first, or what
            ``pack_weight`` makes of it, with the layout "swiglu", in float8 too, or "panels".
        bias: [2F] of the dtype of `x`, or None for 0.
        backend: "auto", "reference", "cpu" or "cuda".

    Returns:
        [..., F] of the dtype of `x`, contiguous.

    Raises:
        TypeError: `x` is not floating point, or another tensor of another dtype.
        ValueError: shapes or devices do not fit.
        RuntimeError: an argument requires grad. For training there are ``F.linear`` and ``swiglu``.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Sums are float32 (float64 for float64); the reference rounds h too. Autocast casts all
        three tensors to its dtype.

    Backends:
        reference, which is PyTorch's product and a pass over its result, and unpacks a packed
        weight; C++ on the CPU for float32 in panels; CUDA C++ for a weight packed for tensor cores,
        up to 128 rows and float16 or bfloat16 throughout, on cards of capability 9.0 or 10.x.
    """
    return _op.call(x, weight, bias, backend)


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    linear_checks.check("linear_swiglu", x, weight, bias, swiglu=True, panels=True)


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed_weight.features(weight) // 2))


_op = KernelOp(
    "linear_swiglu",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")},
    autocast=("x", "weight", "bias"),
)
