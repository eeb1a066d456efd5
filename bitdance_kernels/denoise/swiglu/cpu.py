"""swiglu in C++: csrc/cpu/swiglu*.cpp."""

from __future__ import annotations

import torch

from bitdance_kernels import _native
from bitdance_kernels.denoise import native_rows


def unsupported(h: torch.Tensor) -> str | None:
    return native_rows.unsupported("swiglu", h)


def run(h: torch.Tensor) -> torch.Tensor:
    (y,), written = native_rows.new(h[..., : h.shape[-1] // 2])
    if y.numel() == 0:
        return y
    _kept, rows = native_rows.read(h)
    _native.cpu.swiglu(*rows, *written, native_rows.count(y), y.shape[-1], torch.get_num_threads())
    return y


def unsupported_backward(grad: torch.Tensor, h: torch.Tensor) -> str | None:
    return native_rows.unsupported("swiglu_backward", grad, h)


def run_backward(grad: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    (of_h,), written = native_rows.new(h)
    if grad.numel() == 0:
        return of_h
    _kept, rows = native_rows.read(grad, h)
    _native.cpu.swiglu_backward(
        *rows, *written, native_rows.count(grad), grad.shape[-1], torch.get_num_threads()
    )
    return of_h
