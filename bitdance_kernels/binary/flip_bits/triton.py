"""flip_bits and flip_signs in Triton: a lane draws the eight flips of one byte."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import native, triton_support
from bitdance_kernels._shared.rows import as_rows

# Bytes per program. Sixty integer instructions a byte hide every load.
_BLOCK = 512
_SIGNS_BLOCK = 256


@triton.jit
def _below(word, threshold, bit):
    """Bits `bit` and `bit + 1`: whether the lower and upper half-words are below `threshold`."""
    low = ((word & 0xFFFF).to(tl.int32) < threshold).to(tl.int32)
    high = ((word >> 16).to(tl.int32) < threshold).to(tl.int32)
    return (low << bit) | (high << (bit + 1))


@triton.jit
def _flips(key_ptr, byte, threshold):
    """The flips of bytes `byte`, int32 in [0, 256)."""
    seed = tl.load(key_ptr)
    offset = tl.load(key_ptr + tl.full((), 1, tl.int64))
    zero = byte * 0
    w0, w1, w2, w3 = tl.philox(
        seed,
        byte.to(tl.int32),
        (byte >> 32).to(tl.int32),
        (zero + offset).to(tl.int32),
        (zero + 0xB175F11D).to(tl.int32),
        10,
    )
    flips = _below(w0, threshold, 0) | _below(w1, threshold, 2)
    return flips | _below(w2, threshold, 4) | _below(w3, threshold, 6)


@triton.jit
def _flip_bits_kernel(
    packed_ptr,
    flipped_ptr,
    key_ptr,
    threshold,
    total,
    row_bytes,
    row_stride,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = byte < total
    if EVEN:  # rows without gaps: no division
        source = byte
    else:
        source = (byte // row_bytes) * row_stride + byte % row_bytes
    packed = tl.load(packed_ptr + source, mask=inside, other=0)
    flips = _flips(key_ptr, byte, threshold).to(tl.uint8)
    tl.store(flipped_ptr + byte, packed ^ flips, mask=inside)


@triton.jit
def _flip_signs_kernel(
    x_ptr,
    y_ptr,
    key_ptr,
    threshold,
    total,
    row_bytes,
    row_stride,
    SIGN: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = (byte < total)[:, None]
    if EVEN:
        first = byte * 8
    else:
        first = (byte // row_bytes) * row_stride + (byte % row_bytes) * 8
    channel = tl.arange(0, 8)[None, :]
    x = tl.load(x_ptr + (first[:, None] + channel), mask=inside, other=0)  # [BLOCK, 8] patterns
    flips = (_flips(key_ptr, byte, threshold)[:, None] >> channel) & 1
    sign = (flips << SIGN).to(x.dtype)
    tl.store(y_ptr + (byte[:, None] * 8 + channel), x ^ sign, mask=inside)


def unsupported(
    packed: torch.Tensor, rate: float, key: torch.Tensor, r1: torch.Tensor | None, *_: object
) -> str | None:
    if r1 is not None:
        return "it draws its own random numbers"
    return triton_support.unsupported(packed, key)


def run(
    packed: torch.Tensor,
    rate: float,
    key: torch.Tensor,
    r1: torch.Tensor | None,
    r2: torch.Tensor | None,
) -> torch.Tensor:
    flipped = packed.new_empty(packed.shape)
    if flipped.numel() == 0:
        return flipped
    packed, _, stride = as_rows(packed)
    total, width = packed.numel(), packed.shape[-1]
    with triton_support.on_device(packed):
        _flip_bits_kernel[(triton.cdiv(total, _BLOCK),)](
            packed,
            flipped,
            key.contiguous(),
            round(rate * 2**15),
            total,
            width,
            stride,
            EVEN=stride == width,
            BLOCK=_BLOCK,
        )
    return flipped


def unsupported_signs(
    x: torch.Tensor, rate: float, key: torch.Tensor, r1: torch.Tensor | None, *_: object
) -> str | None:
    if r1 is not None:
        return "it draws its own random numbers"
    return triton_support.unsupported(key) or native.dtype_unsupported(x.dtype)


def run_signs(
    x: torch.Tensor,
    rate: float,
    key: torch.Tensor,
    r1: torch.Tensor | None,
    r2: torch.Tensor | None,
) -> torch.Tensor:
    y = x.new_empty(x.shape)
    if y.numel() == 0:
        return y
    x, _, stride = as_rows(x)
    # Bit patterns, not values: NaN has a sign bit too.
    pattern = torch.int32 if x.dtype == torch.float32 else torch.int16
    width = x.shape[-1]
    total = x.numel() // 8
    with triton_support.on_device(x):
        _flip_signs_kernel[(triton.cdiv(total, _SIGNS_BLOCK),)](
            x.view(pattern),
            y.view(pattern),
            key.contiguous(),
            round(rate * 2**15),
            total,
            width // 8,
            stride,
            SIGN=8 * x.element_size() - 1,
            EVEN=stride == width,
            BLOCK=_SIGNS_BLOCK,
        )
    return y
