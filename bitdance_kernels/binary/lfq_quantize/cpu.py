"""lfq_quantize in C++: csrc/cpu/lfq_quantize*.cpp."""

from __future__ import annotations

import torch

from bitdance_kernels import _native
from bitdance_kernels._rows import as_rows


def unsupported(x: torch.Tensor) -> str | None:
    return _native.cpu_unsupported("lfq_quantize", x) or _native.dtype_unsupported(x.dtype)


def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    quantized = torch.empty(x.shape, dtype=x.dtype)
    packed = torch.empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)
    x, rows, stride = as_rows(x)
    _native.cpu.lfq_quantize(
        x.data_ptr(),
        quantized.data_ptr(),
        packed.data_ptr(),
        rows,
        x.shape[-1],
        stride,
        _native.DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )
    return quantized, packed
