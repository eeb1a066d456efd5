"""lfq_quantize in Triton: one lane of a block makes one byte and eight values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels import _triton
from bitdance_kernels._rows import as_rows

# Bytes a program: 8 KiB of float32 in and out, four bytes a thread at four warps.
_BLOCK = 512


@triton.jit
def _lfq_quantize_kernel(
    x_ptr,
    quantized_ptr,
    packed_ptr,
    total,
    row_bytes,
    row_stride,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = byte < total
    if EVEN:  # the rows follow each other without a gap: no division
        first = byte * 8
    else:
        first = (byte // row_bytes) * row_stride + (byte % row_bytes) * 8
    channel = tl.arange(0, 8)
    offsets = first[:, None] + channel[None, :]  # [BLOCK, 8], 64 bits wide
    x = tl.load(x_ptr + offsets, mask=inside[:, None], other=0.0)
    positive = x.to(tl.float32) > 0  # [BLOCK, 8]
    values = tl.where(positive, 1.0, -1.0).to(quantized_ptr.dtype.element_ty)
    outputs = byte[:, None] * 8 + channel[None, :]
    tl.store(quantized_ptr + outputs, values, mask=inside[:, None])
    bits = positive.to(tl.int32) << channel[None, :]
    tl.store(packed_ptr + byte, tl.sum(bits, axis=1).to(tl.uint8), mask=inside)


def unsupported(x: torch.Tensor) -> str | None:
    return _triton.unsupported(x) or _triton.dtype_unsupported(x.dtype)


def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    quantized = x.new_empty(x.shape)
    packed = x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)
    if packed.numel() == 0:
        return quantized, packed
    x, _, stride = as_rows(x)
    total = packed.numel()
    with _triton.on_device(x):
        _lfq_quantize_kernel[(triton.cdiv(total, _BLOCK),)](
            x,
            quantized,
            packed,
            total,
            packed.shape[-1],
            stride,
            EVEN=stride == x.shape[-1],
            BLOCK=_BLOCK,
        )
    return quantized, packed
