"""packed_linear in Triton: bits become +1 and -1 on their way into a tile's product.

+1 and -1 are exact in bfloat16, and a float32 weight is exactly the sum of three bfloat16 numbers.
So three products on tensor cores, with sums in float32, are a product in float32. Each program
splits the weights that it loads, which takes a few instructions a weight and no memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows

_ROWS, _FEATURES = 64, 64
_GRADIENT_ROWS, _GRADIENT_FEATURES = 32, 32  # more would spill in float32
# Programs of the backward pass for many rows and few features.
_PROGRAMS = 512


@triton.jit
def _load_signs(
    packed_ptr, rows, count, stride, byte, width, dtype: tl.constexpr, ROWS: tl.constexpr,
    BYTES: tl.constexpr,
):  # fmt: skip
    """[ROWS, 8 * BYTES] of +1 and -1; outside it is -1, which the product multiplies by zero."""
    inside = (rows < count)[:, None] & (byte < width)[None, :]
    packed = tl.load(packed_ptr + (rows[:, None] * stride + byte[None, :]), mask=inside, other=0)
    bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(2 * bits - 1, [ROWS, 8 * BYTES]).to(dtype)


@triton.jit
def _head(x):
    """The first 8 bits of float32 significands: bfloat16 numbers. A rounded one could overflow."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _split(x):
    """Three bfloat16 numbers of float32 x, and the rest that is left of it.

    The rest is zero but for numbers below 2^-109, of which bfloat16 has not all bits. Infinity is
    the first part alone; NaN is in the second.
    """
    high = _head(x)
    x = tl.where(x == high, 0.0, x - high)
    middle = _head(x)
    x = x - middle
    low = _head(x)
    return high, middle, low, x - low


@triton.jit
def _load_weight(
    weight_ptr, feature, features, stride, first, width, BYTES: tl.constexpr
):  # fmt: skip
    channel = first * 8 + tl.arange(0, 8 * BYTES).to(tl.int64)
    inside = (feature < features)[:, None] & (channel < 8 * width)[None, :]
    at = feature[:, None] * stride + channel[None, :]
    return tl.load(weight_ptr + at, mask=inside, other=0.0)


@triton.jit
def _packed_linear_kernel(
    packed_ptr, weight_ptr, bias_ptr, y_ptr, rows, features, width, packed_stride, weight_stride,
    HAS_BIAS: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
    BYTES: tl.constexpr,
):  # fmt: skip
    """PART: dtype of the products' operands."""
    tiles = tl.cdiv(features, FEATURES)
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles * ROWS + tl.arange(0, ROWS)
    feature = program % tiles * FEATURES + tl.arange(0, FEATURES)
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    sums = tl.zeros([ROWS, FEATURES], tl.float32)
    rests = 0
    for first in range(0, width, BYTES):
        byte = first + tl.arange(0, BYTES).to(tl.int64)
        signs = _load_signs(packed_ptr, row, rows, packed_stride, byte, width, PART, ROWS, BYTES)
        weight = _load_weight(weight_ptr, feature, features, weight_stride, first, width, BYTES)
        if dtype == tl.float32:
            high, middle, low, rest = _split(weight)
            sums = tl.dot(signs, tl.trans(low.to(PART)), sums, input_precision="ieee")
            sums = tl.dot(signs, tl.trans(middle.to(PART)), sums, input_precision="ieee")
            sums = tl.dot(signs, tl.trans(high.to(PART)), sums, input_precision="ieee")
            rests += tl.sum(tl.where(rest == 0.0, 0, 1))
        else:
            sums = tl.dot(signs, tl.trans(weight), sums, input_precision="ieee")
    if dtype == tl.float32:  # noqa: SIM102  (it is a constant of the compilation)
        if rests > 0:  # of 16 bits, which are two parts of a number 2^24 times as large
            small = tl.zeros([ROWS, FEATURES], tl.float32)
            for first in range(0, width, BYTES):
                byte = first + tl.arange(0, BYTES).to(tl.int64)
                signs = _load_signs(
                    packed_ptr, row, rows, packed_stride, byte, width, PART, ROWS, BYTES
                )
                weight = _load_weight(
                    weight_ptr, feature, features, weight_stride, first, width, BYTES
                )
                _, _, _, rest = _split(weight)
                high, low, _, _ = _split(rest * 16777216.0)
                small = tl.dot(signs, tl.trans(low.to(PART)), small, input_precision="ieee")
                small = tl.dot(signs, tl.trans(high.to(PART)), small, input_precision="ieee")
            sums += small * (1.0 / 16777216.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + feature, mask=feature < features, other=0.0)
        sums += bias.to(tl.float32)[None, :]
    inside = (row < rows)[:, None] & (feature < features)[None, :]
    tl.store(y_ptr + (row[:, None] * features + feature[None, :]), sums.to(dtype), mask=inside)


@triton.jit
def _packed_linear_of_weight_kernel(
    grad_ptr, packed_ptr, grad_weight_ptr, rows, features, width, grad_stride, packed_stride, trips,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Adds grad^T signs over `trips` tiles of rows, into slice program_id(1) of grad_weight."""
    tiles = tl.cdiv(width, BYTES)
    program = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1).to(tl.int64)
    feature = program // tiles * FEATURES + tl.arange(0, FEATURES)
    byte = program % tiles * BYTES + tl.arange(0, BYTES)
    channel = program % tiles * (8 * BYTES) + tl.arange(0, 8 * BYTES)
    dtype: tl.constexpr = grad_ptr.dtype.element_ty
    sums = tl.zeros([FEATURES, 8 * BYTES], tl.float32)
    for trip in range(trips):
        row = (piece * trips + trip) * ROWS + tl.arange(0, ROWS)
        grad = tl.load(
            grad_ptr + (row[:, None] * grad_stride + feature[None, :]),
            mask=(row < rows)[:, None] & (feature < features)[None, :],
            other=0.0,
        )
        signs = _load_signs(packed_ptr, row, rows, packed_stride, byte, width, dtype, ROWS, BYTES)
        sums = tl.dot(tl.trans(grad), signs, sums, input_precision="ieee")
    inside = (feature < features)[:, None] & (channel < 8 * width)[None, :]
    at = (piece * features + feature[:, None]) * (8 * width) + channel[None, :]
    tl.store(grad_weight_ptr + at, sums, mask=inside)


def _part(dtype: torch.dtype) -> tl.dtype:
    """Dtype of the products' operands for weights of `dtype`."""
    if dtype == torch.float32:
        # The interpreter has no right bfloat16; every part is a float32 number too.
        return tl.float32 if triton_support.interpreting() else tl.bfloat16
    return tl.float16 if dtype == torch.float16 else tl.bfloat16


def _bytes(width: int) -> int:
    """Bytes of a row in a tile: at least the 16 channels that a product needs."""
    return min(max(triton.next_power_of_2(width), 2), 8)


def unsupported(
    packed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> str | None:
    return triton_support.unsupported(packed, weight)


def run(packed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    features, width = weight.shape[0], packed.shape[-1]
    y = weight.new_empty((*packed.shape[:-1], features))
    if y.numel() == 0:
        return y
    packed, rows, packed_stride = as_rows(packed)
    weight, _, weight_stride = as_rows(weight)
    with triton_support.on_device(packed):
        _packed_linear_kernel[(triton.cdiv(rows, _ROWS) * triton.cdiv(features, _FEATURES),)](
            packed, weight, weight if bias is None else bias.contiguous(), y, rows, features, width,
            packed_stride, weight_stride, HAS_BIAS=bias is not None,
            PART=_part(weight.dtype), ROWS=_ROWS, FEATURES=_FEATURES, BYTES=_bytes(width),
        )  # fmt: skip
    return y


def unsupported_backward(
    grad: torch.Tensor, packed: torch.Tensor, weight: torch.Tensor
) -> str | None:
    return triton_support.unsupported(grad, packed, weight)


def run_backward(
    grad: torch.Tensor, packed: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    features, width = weight.shape[0], packed.shape[-1]
    grad_bias = grad.reshape(-1, features).sum(0, dtype=torch.float32).to(weight.dtype)
    if grad.numel() == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format), grad_bias
    grad, rows, grad_stride = as_rows(grad.to(weight.dtype))
    packed, _, packed_stride = as_rows(packed)
    tiles = triton.cdiv(features, _GRADIENT_FEATURES) * triton.cdiv(width, _bytes(width))
    blocks = triton.cdiv(rows, _GRADIENT_ROWS)
    trips = triton.cdiv(blocks, max(_PROGRAMS // tiles, 1))
    pieces = triton.cdiv(blocks, trips)
    parts = torch.empty(pieces, features, 8 * width, dtype=torch.float32, device=grad.device)
    with triton_support.on_device(grad):
        _packed_linear_of_weight_kernel[(tiles, pieces)](
            grad, packed, parts, rows, features, width, grad_stride, packed_stride, trips,
            ROWS=_GRADIENT_ROWS, FEATURES=_GRADIENT_FEATURES, BYTES=_bytes(width),
        )  # fmt: skip
    return parts.sum(0).to(weight.dtype), grad_bias
