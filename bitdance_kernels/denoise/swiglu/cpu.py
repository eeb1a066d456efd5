"""swiglu in C++: csrc/cpu/swiglu*.cpp."""

from __future__ import annotations

import torch

from bitdance_kernels import _native
from bitdance_kernels.denoise import native_rows


def unsupported(h: torch.Tensor) -> str | None:
    return native_rows.unsupported("swiglu", h)


def run(h: torch.Tensor) -> torch.Tensor:
    y = h.new_empty((*h.shape[:-1], h.shape[-1] // 2))
    if y.numel() == 0:
        return y
    _kept, rows = native_rows.rows(h)
    _native.cpu.swiglu(
        *rows, y.data_ptr(), native_rows.count(y), y.shape[-1], torch.get_num_threads()
    )
    return y


def unsupported_backward(grad: torch.Tensor, h: torch.Tensor) -> str | None:
    return native_rows.unsupported("swiglu_backward", grad, h)


def run_backward(grad: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    of_h = h.new_empty(h.shape)
    if grad.numel() == 0:
        return of_h
    _kept, rows = native_rows.rows(grad, h)
    _native.cpu.swiglu_backward(
        *rows, of_h.data_ptr(), native_rows.count(grad), grad.shape[-1], torch.get_num_threads()
    )
    return of_h
