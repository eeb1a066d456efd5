"""unpack_signs in C++: csrc/cpu/unpack_signs."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import memory, native
from bitdance_kernels._shared.rows import as_rows

fills_results = True


def unsupported(packed: torch.Tensor, dtype: torch.dtype) -> str | None:
    return native.cpu_unsupported("unpack_signs", packed) or native.dtype_unsupported(dtype)


def run(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    *leading, width = packed.shape
    y = memory.empty((*leading, 8 * width), dtype)
    packed, rows, stride = as_rows(packed)
    native.cpu.unpack_signs(
        packed, y, rows, 8 * width, stride, native.DTYPE_CODES[dtype], torch.get_num_threads()
    )
    return y
