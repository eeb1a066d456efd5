"""bit_counts: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks

__all__ = ["bit_counts"]


def bit_counts(packed: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Count the ones of every channel: ``n[c]`` = sum over all leading positions of bit c.

    A channel whose count is near 0 or near the number of positions carries next to no information;
    this is the first thing to look at in a tokenizer's codes.

    Args:
        packed: uint8 [..., C / 8], any strides.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        int64 [C].

    Raises:
        TypeError: `packed` is not uint8.
        ValueError: `packed` has no dimension, or its last one is empty.
        BackendError: a backend named explicitly cannot run the call.

    Backends:
        reference; cpu (AVX2, AVX-512); triton. All give equal counts.

    Example:
        >>> import torch
        >>> bit_counts(torch.tensor([[3], [2]], dtype=torch.uint8))
        tensor([1, 2, 0, 0, 0, 0, 0, 0])
    """
    return _op.call(packed, backend)


def _check(packed: torch.Tensor) -> None:
    checks.dtype("bit_counts", "packed", packed, (torch.uint8,))
    checks.rank("bit_counts", "packed", packed, 1)
    if packed.shape[-1] == 0:
        raise checks.fail("bit_counts", "packed", "[..., C / 8] with C > 0", list(packed.shape))


def _fake(packed: torch.Tensor) -> torch.Tensor:
    return packed.new_empty(packed.shape[-1] * 8, dtype=torch.int64)


_op = KernelOp(
    "bit_counts",
    "(Tensor packed) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")},
)
