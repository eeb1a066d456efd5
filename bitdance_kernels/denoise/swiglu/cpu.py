"""swiglu in C++: csrc/cpu/swiglu."""

from __future__ import annotations

import torch

from bitdance_kernels import _memory, _native
from bitdance_kernels.denoise import native_rows


def unsupported(h: torch.Tensor) -> str | None:
    return native_rows.unsupported("swiglu", h)


def run(h: torch.Tensor) -> torch.Tensor:
    *rows, width = h.shape
    y = _memory.empty((*rows, width // 2), h.dtype)
    _native.cpu.swiglu(*native_rows.spaced(h), y, *native_rows.size(y), torch.get_num_threads())
    return y


def unsupported_backward(grad: torch.Tensor, h: torch.Tensor) -> str | None:
    return native_rows.unsupported("swiglu_backward", grad, h)


def run_backward(grad: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    of_h = _memory.empty_like(h)
    _native.cpu.swiglu_backward(
        *native_rows.spaced(grad, h), of_h, *native_rows.size(grad), torch.get_num_threads()
    )
    return of_h
