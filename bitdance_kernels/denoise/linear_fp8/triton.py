"""linear_fp8 with rows quantized in Triton: a program handles a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import quantized, triton_support
from bitdance_kernels._shared.rows import as_rows

_MAX_CHANNELS = 4096  # of a row that a program takes at a time


@triton.jit
def _bits_of_e4m3(x):
    """The bits of `x`, |x| at most 448 or not finite, rounded to nearest even."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # Exponents differ by 127 - 7, and 3 bits of the mantissa's 23 stay.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 values are multiples of 2^-9, the unit in the last place of 2^14.
    shifted = tl.abs(x) + 16384.0
    small = shifted.to(tl.int32, bitcast=True) & 0xF
    rounded = tl.where(size < 0x3C800000, small, normal)
    rounded = tl.where(size >= 0x7F800000, 0x7F, rounded)
    return (rounded | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _quantize_rows_kernel(x_ptr, values_ptr, scales_ptr, x_stride, channels, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    source, target = x_ptr + row * x_stride, values_ptr + row * channels
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(source + channel, mask=channel < channels, other=0.0).to(tl.float32)
        size = tl.abs(x)
        largest = tl.maximum(largest, tl.where(size < float("inf"), size, 0.0))
    # A float32 m 2^k becomes 2^(k + 1) by this sum where m > 1.75; the largest value is 1.75 2^8.
    whole = tl.max(largest, 0).to(tl.int32, bitcast=True) + 0x1FFFFF
    exponent = tl.maximum((whole >> 23) - 8, 1)
    tl.store(scales_ptr + row, (exponent << 23).to(tl.float32, bitcast=True))
    # Exponents of 2^k and 2^-k add up to 2 * 127.
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK).to(tl.int64)
        inside = channel < channels
        x = tl.load(source + channel, mask=inside, other=0.0).to(tl.float32)
        tl.store(target + channel, _bits_of_e4m3(x * inverse), mask=inside)


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    quantize_x: bool,
) -> str | None:
    reason = triton_support.unsupported(x)
    if reason is not None:
        return reason
    if not quantize_x:
        return "it is for quantize_x=True"
    odd = [size for size in weight.shape if size % 16 != 0]
    if odd:
        return f"it needs C and F that are multiples of 16, got {odd[0]}"
    if x.device.type != "cuda":
        return None
    if torch.cuda.get_device_capability(x.device) < (8, 9):
        return "cards before capability 8.9 have no float8 product"
    # PyTorch's product with a scale for each row has no other result.
    return None if x.dtype == torch.bfloat16 else f"it does not handle {x.dtype}"


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    quantize_x: bool,
) -> torch.Tensor:
    shape = (*x.shape[:-1], len(weight))
    x, rows, stride = as_rows(x)
    channels = x.shape[-1]
    if rows == 0:
        return x.new_empty(shape)
    values = x.new_empty((rows, channels), dtype=torch.uint8)
    scales = x.new_empty((rows, 1), dtype=torch.float32)
    block = min(_MAX_CHANNELS, triton.next_power_of_2(channels))
    with triton_support.on_device(x):
        _quantize_rows_kernel[(rows,)](x, values, scales, stride, channels, BLOCK=block)
    # Without use_fast_accum sums go to float32 registers every 128 channels.
    matrix = weight.contiguous().view(quantized.FLOAT8).t()
    y = torch._scaled_mm(
        values.view(quantized.FLOAT8), matrix, scale_a=scales, scale_b=weight_scale.float()[None],
        bias=bias, out_dtype=x.dtype, use_fast_accum=False,
    )  # fmt: skip
    return y.view(shape)
