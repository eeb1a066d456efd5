"""unpack_signs in Triton: one lane of a block spreads one byte over eight adjacent channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows

# Bytes per program: 8 KiB of float32 out, four bytes a thread at four warps.
_BLOCK = 512


@triton.jit
def _unpack_signs_kernel(
    packed_ptr, y_ptr, total, row_bytes, row_stride, EVEN: tl.constexpr, BLOCK: tl.constexpr
):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = byte < total
    if EVEN:  # rows without gaps: no division
        source = byte
    else:
        source = (byte // row_bytes) * row_stride + byte % row_bytes
    packed = tl.load(packed_ptr + source, mask=inside, other=0).to(tl.int32)
    channel = tl.arange(0, 8)
    bits = (packed[:, None] >> channel[None, :]) & 1  # [BLOCK, 8]
    y = (bits * 2 - 1).to(tl.float32)
    offsets = byte[:, None] * 8 + channel[None, :]
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside[:, None])


def unsupported(packed: torch.Tensor, dtype: torch.dtype) -> str | None:
    return triton_support.unsupported(packed) or triton_support.dtype_unsupported(dtype)


def run(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = packed.new_empty((*packed.shape[:-1], packed.shape[-1] * 8), dtype=dtype)
    if y.numel() == 0:
        return y
    packed, _, stride = as_rows(packed)
    total = packed.numel()
    with triton_support.on_device(packed):
        _unpack_signs_kernel[(triton.cdiv(total, _BLOCK),)](
            packed,
            y,
            total,
            packed.shape[-1],
            stride,
            EVEN=stride == packed.shape[-1],
            BLOCK=_BLOCK,
        )
    return y
