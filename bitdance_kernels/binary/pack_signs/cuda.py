"""pack_signs in CUDA C++: csrc/cuda/pack_signs."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels._shared.rows import as_rows


def unsupported(x: torch.Tensor) -> str | None:
    reason = native.cuda_unsupported("pack_signs", x)
    return reason or (None if x.dtype in native.SIGN_CODES else f"it does not handle {x.dtype}")


def run(x: torch.Tensor) -> torch.Tensor:
    packed = x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.uint8)
    x, rows, stride = as_rows(x)
    native.cuda.pack_signs(
        x, packed, rows, x.shape[-1], stride, native.SIGN_CODES[x.dtype], *native.stream(x.device)
    )
    return packed
