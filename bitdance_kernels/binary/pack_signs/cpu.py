"""pack_signs in C++: csrc/cpu/pack_signs."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels._shared.rows import as_rows

fills_results = True


def unsupported(x: torch.Tensor) -> str | None:
    reason = native.cpu_unsupported("pack_signs", x)
    return reason or (None if x.dtype in native.SIGN_CODES else f"it does not handle {x.dtype}")


def run(x: torch.Tensor) -> torch.Tensor:
    *leading, channels = x.shape
    packed = x.new_empty(*leading, channels // 8, dtype=torch.uint8)
    x, rows, stride = as_rows(x)
    native.cpu.pack_signs(
        x, packed, rows, channels, stride, native.SIGN_CODES[x.dtype], torch.get_num_threads()
    )
    return packed
