"""lfq_quantize in C++: csrc/cpu/lfq_quantize."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import memory, native
from bitdance_kernels._shared.rows import as_rows

fills_results = True


def unsupported(x: torch.Tensor) -> str | None:
    return native.cpu_unsupported("lfq_quantize", x) or native.dtype_unsupported(x.dtype)


def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    quantized = memory.empty(x.shape, x.dtype)
    packed = x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)
    x, rows, stride = as_rows(x)
    native.cpu.lfq_quantize(
        x,
        quantized,
        packed,
        rows,
        x.shape[-1],
        stride,
        native.DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )
    return quantized, packed


# Values that are worth a thread, as kGrainBytes in csrc/cpu/lfq_quantize.
_GRAIN = 65536


def unsupported_commitment(x: torch.Tensor) -> str | None:
    return native.cpu_unsupported("lfq_quantize_commitment", x) or _not_float32(x)


def run_commitment(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    quantized = memory.empty(x.shape, x.dtype)
    packed = x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)
    x, rows, stride = as_rows(x)
    slices = max(1, min(torch.get_num_threads(), x.numel() // _GRAIN))
    sums = x.new_empty(slices, dtype=torch.float64)
    native.cpu.lfq_quantize_commitment(
        x, quantized, packed, sums, rows, x.shape[-1], stride, slices
    )
    return quantized, packed, (sums.sum() / x.numel()).float()


def unsupported_commitment_backward(
    grad: torch.Tensor, grad_commitment: torch.Tensor, x: torch.Tensor
) -> str | None:
    return native.cpu_unsupported(
        "lfq_quantize_commitment_backward", grad, grad_commitment, x
    ) or _not_float32(grad, x)


def run_commitment_backward(
    grad: torch.Tensor, grad_commitment: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    grad_x = memory.empty(x.shape, x.dtype)
    factor = grad_commitment.item() * 2 / max(x.numel(), 1)
    grad, _, grad_stride = as_rows(grad)
    x, rows, x_stride = as_rows(x)
    native.cpu.lfq_quantize_commitment_backward(
        grad, grad_stride, x, x_stride, factor, grad_x, rows, x.shape[-1], torch.get_num_threads()
    )
    return grad_x


def _not_float32(*tensors: torch.Tensor) -> str | None:
    wrong = next((t.dtype for t in tensors if t.dtype != torch.float32), None)
    return None if wrong is None else f"it handles float32 only, got {wrong}"
