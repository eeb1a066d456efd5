"""pack_signs in Triton: one lane of a block makes one byte from eight adjacent channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows

# Bytes per program: 8 KiB of float32 in, four bytes a thread at four warps.
_BLOCK = 512


@triton.jit
def _pack_signs_kernel(
    x_ptr, packed_ptr, total, row_bytes, row_stride, EVEN: tl.constexpr, BLOCK: tl.constexpr
):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = byte < total
    if EVEN:  # rows without gaps: no division
        first = byte * 8
    else:
        first = (byte // row_bytes) * row_stride + (byte % row_bytes) * 8
    channel = tl.arange(0, 8)
    offsets = first[:, None] + channel[None, :]  # [BLOCK, 8]
    x = tl.load(x_ptr + offsets, mask=inside[:, None], other=0).to(tl.float32)
    bits = (x > 0).to(tl.int32) << channel[None, :]
    tl.store(packed_ptr + byte, tl.sum(bits, axis=1).to(tl.uint8), mask=inside)


def unsupported(x: torch.Tensor) -> str | None:
    return triton_support.unsupported(x)


def run(x: torch.Tensor) -> torch.Tensor:
    packed = x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)
    if packed.numel() == 0:
        return packed
    x, _, stride = as_rows(x)
    total = packed.numel()
    with triton_support.on_device(x):
        _pack_signs_kernel[(triton.cdiv(total, _BLOCK),)](
            x, packed, total, packed.shape[-1], stride, EVEN=stride == x.shape[-1], BLOCK=_BLOCK
        )
    return packed
