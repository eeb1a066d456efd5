"""lfq_quantize in Triton: one lane of a block makes one byte and eight values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows

# Bytes per program: 8 KiB of float32 in and out, four bytes a thread at four warps.
_BLOCK = 512


@triton.jit
def _lfq_quantize_kernel(
    x_ptr,
    quantized_ptr,
    packed_ptr,
    sums_ptr,
    total,
    row_bytes,
    row_stride,
    EVEN: tl.constexpr,
    COMMITMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    byte = program * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = byte < total
    if EVEN:  # rows without gaps: no division
        first = byte * 8
    else:
        first = (byte // row_bytes) * row_stride + (byte % row_bytes) * 8
    channel = tl.arange(0, 8)
    offsets = first[:, None] + channel[None, :]  # [BLOCK, 8], 64 bits wide
    x = tl.load(x_ptr + offsets, mask=inside[:, None], other=0.0)
    x = x.to(tl.float32)
    positive = x > 0  # [BLOCK, 8]
    values = tl.where(positive, 1.0, -1.0).to(quantized_ptr.dtype.element_ty)
    outputs = byte[:, None] * 8 + channel[None, :]
    tl.store(quantized_ptr + outputs, values, mask=inside[:, None])
    bits = positive.to(tl.int32) << channel[None, :]
    tl.store(packed_ptr + byte, tl.sum(bits, axis=1).to(tl.uint8), mask=inside)
    if COMMITMENT:
        distance = tl.where(inside[:, None], tl.abs(x) - 1.0, 0.0)
        squares = tl.sum(distance * distance, axis=1).to(tl.float64)
        tl.store(sums_ptr + program, tl.sum(squares, axis=0))


@triton.jit
def _lfq_quantize_backward_kernel(
    grad_ptr, grad_commitment_ptr, x_ptr, grad_x_ptr, total, channels, grad_stride, x_stride, share,
    BLOCK: tl.constexpr,
):  # fmt: skip
    value = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = value < total
    row, channel = value // channels, value % channels
    x = tl.load(x_ptr + (row * x_stride + channel), mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + (row * grad_stride + channel), mask=inside, other=0.0)
    factor = tl.load(grad_commitment_ptr).to(tl.float32) * share
    grad_x = grad.to(tl.float32) + factor * (x - tl.where(x > 0, 1.0, -1.0))
    tl.store(grad_x_ptr + value, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)


def unsupported(x: torch.Tensor) -> str | None:
    return triton_support.unsupported(x)


def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    quantized, packed, _ = _run(x, commitment=False)
    return quantized, packed


def unsupported_commitment(x: torch.Tensor) -> str | None:
    return unsupported(x)


def run_commitment(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    quantized, packed, sums = _run(x, commitment=True)
    return quantized, packed, (sums.sum() / x.numel()).to(x.dtype)


def _run(x: torch.Tensor, *, commitment: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signs, bits, and each program's sum of squared distances."""
    quantized = x.new_empty(x.shape)
    packed = x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)
    total = packed.numel()
    programs = triton.cdiv(total, _BLOCK)
    sums = x.new_empty(programs if commitment else 0, dtype=torch.float64)
    if total:
        x, _, stride = as_rows(x)
        with triton_support.on_device(x):
            _lfq_quantize_kernel[(programs,)](
                x, quantized, packed, sums, total, packed.shape[-1], stride,
                EVEN=stride == x.shape[-1], COMMITMENT=commitment, BLOCK=_BLOCK,
            )  # fmt: skip
    return quantized, packed, sums


def unsupported_commitment_backward(
    grad: torch.Tensor, grad_commitment: torch.Tensor, x: torch.Tensor
) -> str | None:
    return triton_support.unsupported(grad, grad_commitment, x)


def run_commitment_backward(
    grad: torch.Tensor, grad_commitment: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    grad_x = x.new_empty(x.shape)
    total = x.numel()
    if total == 0:
        return grad_x
    (grad, _, grad_stride), (x, _, x_stride) = as_rows(grad), as_rows(x)
    with triton_support.on_device(x):
        _lfq_quantize_backward_kernel[(triton.cdiv(total, 2 * _BLOCK),)](
            grad, grad_commitment, x, grad_x, total, x.shape[-1], grad_stride, x_stride, 2 / total,
            BLOCK=2 * _BLOCK,
        )  # fmt: skip
    return grad_x
