"""finalize_bits in Triton: a lane of a block makes one byte and eight values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels.denoise._shared import guidance

# Bytes per program: of bfloat16, 8 KiB of both halves in and 4 KiB out.
_BLOCK = 256


@triton.jit
def _finalize_bits_kernel(
    x0_ptr, cfg_ptr, signs_ptr, packed_ptr, total, GUIDED: tl.constexpr, BLOCK: tl.constexpr
):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = byte < total
    channel = tl.arange(0, 8)[None, :]
    value = byte[:, None] * 8 + channel  # [BLOCK, 8]
    x0 = tl.load(x0_ptr + value, mask=inside[:, None], other=0.0).to(tl.float32)
    if GUIDED:
        other = tl.load(x0_ptr + (value + total * 8), mask=inside[:, None], other=0.0)
        other = other.to(tl.float32)
        x0 = other + tl.load(cfg_ptr) * (x0 - other)
    positive = x0 > 0
    signs = tl.where(positive, 1.0, -1.0).to(signs_ptr.dtype.element_ty)
    tl.store(signs_ptr + value, signs, mask=inside[:, None])
    bits = tl.sum(positive.to(tl.int32) << channel, axis=1)
    tl.store(packed_ptr + byte, bits.to(tl.uint8), mask=inside)


def unsupported(x0: torch.Tensor, cfg: torch.Tensor | None) -> str | None:
    return triton_support.unsupported(x0)


def run(x0: torch.Tensor, cfg: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (guidance.rows(x0, cfg), *x0.shape[1:])
    signs = x0.new_empty(shape)
    packed = x0.new_empty((*shape[:-1], shape[-1] // 8), dtype=torch.uint8)
    total = packed.numel()
    if total == 0:
        return signs, packed
    with triton_support.on_device(x0):
        _finalize_bits_kernel[(triton.cdiv(total, _BLOCK),)](
            x0.contiguous(),
            None if cfg is None else cfg.to(torch.float32),
            signs,
            packed,
            total,
            GUIDED=cfg is not None,
            BLOCK=_BLOCK,
            # Guidance rounds after each operation: a fused multiply-add would change signs.
            enable_fp_fusion=False,
        )
    return signs, packed
