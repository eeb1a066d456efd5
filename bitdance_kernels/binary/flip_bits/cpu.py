"""flip_bits and flip_signs in C++: csrc/cpu/flip_bits."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import memory, native

fills_results = fills_results_signs = True


def unsupported(
    packed: torch.Tensor, rate: float, key: torch.Tensor, r1: torch.Tensor | None, *_: object
) -> str | None:
    if r1 is not None:
        return "it draws its own random numbers"
    return native.cpu_unsupported("flip_bits", packed, key)


def run(
    packed: torch.Tensor,
    rate: float,
    key: torch.Tensor,
    r1: torch.Tensor | None,
    r2: torch.Tensor | None,
) -> torch.Tensor:
    packed, key = packed.contiguous(), key.contiguous()
    flipped = memory.empty(packed.shape, packed.dtype)
    native.cpu.flip_bits(
        packed, flipped, packed.numel(), 0, key, round(rate * 2**15), torch.get_num_threads()
    )
    return flipped


def unsupported_signs(
    x: torch.Tensor, rate: float, key: torch.Tensor, r1: torch.Tensor | None, *_: object
) -> str | None:
    if r1 is not None:
        return "it draws its own random numbers"
    return native.cpu_unsupported("flip_signs", x, key) or native.dtype_unsupported(x.dtype)


def run_signs(
    x: torch.Tensor,
    rate: float,
    key: torch.Tensor,
    r1: torch.Tensor | None,
    r2: torch.Tensor | None,
) -> torch.Tensor:
    x, key = x.contiguous(), key.contiguous()
    y = memory.empty(x.shape, x.dtype)
    native.cpu.flip_signs(
        x,
        y,
        x.numel(),
        key,
        round(rate * 2**15),
        native.DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )
    return y
