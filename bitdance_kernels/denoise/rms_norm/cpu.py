"""rms_norm in C++: csrc/cpu/rms_norm."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.denoise._shared import rows_cpu

fills_results = True


def unsupported(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> str | None:
    return rows_cpu.unsupported("rms_norm", x, weight)


def run(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    y = x.new_empty(x.shape)
    native.cpu.rms_norm(
        *rows_cpu.spaced(x),
        rows_cpu.vector(weight),
        y,
        *rows_cpu.size(x),
        eps,
        torch.get_num_threads(),
    )
    return y
