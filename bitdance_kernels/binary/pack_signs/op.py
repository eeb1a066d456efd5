"""pack_signs: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks

__all__ = ["pack_signs"]

_DTYPES = (*checks.FLOATS, torch.bool, torch.uint8)


def pack_signs(x: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Pack the signs of `x` into bits, eight channels a byte; masks and numbers 0 and 1 too.

    ``packed[..., k]`` has bit j set exactly where ``x[..., 8 * k + j] > 0``: +0, -0 and NaN give 0,
    as in the quantiser of BitDance's tokenizer, which maps them to -1 (not as ``torch.sign``, which
    has a third value). Equal to ``numpy.packbits(x > 0, axis=-1, bitorder="little")``.

    Args:
        x: [..., C], float32, float16, bfloat16, float64, bool or uint8, C a positive multiple of 8;
            any strides.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        uint8 [..., C / 8], contiguous.

    Raises:
        TypeError: `x` is of another dtype.
        ValueError: C is not a positive multiple of 8, or `x` has no dimension.
        RuntimeError: `x` requires grad; signs have no gradient (see ``lfq_quantize`` for the
            straight-through one).
        BackendError: a backend named explicitly cannot run the call.

    Backends:
        reference (all dtypes); cpu, triton and cuda (all but float64). All give equal bytes.

    Example:
        >>> import torch
        >>> pack_signs(torch.tensor([1.0, -1.0, 0.5, 0.0, -2.0, 3.0, 1.0, -1.0]))
        tensor([101], dtype=torch.uint8)
    """
    return _op.call(x, backend)


def _check(x: torch.Tensor) -> None:
    checks.dtype("pack_signs", "x", x, _DTYPES)
    checks.channels("pack_signs", "x", x)


def _fake(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)


_op = KernelOp(
    "pack_signs",
    "(Tensor x) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")},
)
