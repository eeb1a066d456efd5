"""unpack_signs: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks

__all__ = ["unpack_signs"]


def unpack_signs(
    packed: torch.Tensor, dtype: torch.dtype = torch.float32, *, backend: str = "auto"
) -> torch.Tensor:
    """Unpack bits to +1 and -1, the inverse of ``pack_signs``.

    ``y[..., 8 * k + j]`` is +1 where bit j of ``packed[..., k]`` is set, else -1.

    Args:
        packed: uint8 [..., C / 8]; any strides.
        dtype: of the result: float32, float16, bfloat16 or float64.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [..., C] of `dtype`, contiguous.

    Raises:
        TypeError: `packed` is not uint8, or `dtype` is not floating point.
        ValueError: `packed` has no dimension, or its last one is empty.
        BackendError: a backend named explicitly cannot run the call.

    Backends:
        reference (all dtypes); cpu, triton and cuda (float32, float16, bfloat16).

    Example:
        >>> import torch
        >>> unpack_signs(torch.tensor([5], dtype=torch.uint8))
        tensor([ 1., -1.,  1., -1., -1., -1., -1., -1.])
    """
    return _op.call(packed, dtype, backend)


def _check(packed: torch.Tensor, dtype: torch.dtype) -> None:
    checks.dtype("unpack_signs", "packed", packed, (torch.uint8,))
    if dtype not in checks.FLOATS:
        raise TypeError(
            f"unpack_signs: dtype must be float32, float16, bfloat16 or float64, got {dtype}"
        )
    checks.rank("unpack_signs", "packed", packed, 1)
    if packed.shape[-1] == 0:
        raise checks.fail(
            "unpack_signs", "packed", "[..., C / 8] with C > 0", f"shape {list(packed.shape)}"
        )


def _fake(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return packed.new_empty((*packed.shape[:-1], packed.shape[-1] * 8), dtype=dtype)


_op = KernelOp(
    "unpack_signs",
    "(Tensor packed, ScalarType dtype) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")},
)
