"""swiglu in C++: csrc/cpu/swiglu."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import memory, native
from bitdance_kernels.denoise._shared import rows_cpu

fills_results = True


def unsupported(h: torch.Tensor) -> str | None:
    return rows_cpu.unsupported("swiglu", h)


def run(h: torch.Tensor) -> torch.Tensor:
    *rows, width = h.shape
    y = memory.empty((*rows, width // 2), h.dtype)
    native.cpu.swiglu(*rows_cpu.spaced(h), y, *rows_cpu.size(y), torch.get_num_threads())
    return y


def unsupported_backward(grad: torch.Tensor, h: torch.Tensor) -> str | None:
    return rows_cpu.unsupported("swiglu_backward", grad, h)


def run_backward(grad: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    grad_h = memory.empty_like(h)
    native.cpu.swiglu_backward(
        *rows_cpu.spaced(grad, h), grad_h, *rows_cpu.size(grad), torch.get_num_threads()
    )
    return grad_h
