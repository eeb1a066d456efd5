"""unpack_signs in CUDA C++: csrc/cuda/unpack_signs."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels._shared.rows import as_rows


def unsupported(packed: torch.Tensor, dtype: torch.dtype) -> str | None:
    return native.cuda_unsupported("unpack_signs", packed) or native.dtype_unsupported(dtype)


def run(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = packed.new_empty((*packed.shape[:-1], packed.shape[-1] * 8), dtype=dtype)
    packed, rows, stride = as_rows(packed)
    native.cuda.unpack_signs(
        packed,
        y,
        rows,
        y.shape[-1],
        stride,
        native.DTYPE_CODES[dtype],
        *native.stream(packed.device),
    )
    return y
