"""unpack_signs in CUDA C++: csrc/cuda/unpack_signs."""

from __future__ import annotations

import torch

from bitdance_kernels import _native
from bitdance_kernels._rows import as_rows


def unsupported(packed: torch.Tensor, dtype: torch.dtype) -> str | None:
    return _native.cuda_unsupported("unpack_signs", packed) or _native.dtype_unsupported(dtype)


def run(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = packed.new_empty((*packed.shape[:-1], packed.shape[-1] * 8), dtype=dtype)
    packed, rows, stride = as_rows(packed)
    _native.cuda.unpack_signs(
        packed.data_ptr(),
        y.data_ptr(),
        rows,
        y.shape[-1],
        stride,
        _native.DTYPE_CODES[dtype],
        *_native.stream(packed.device),
    )
    return y
