"""bit_counts in C++: csrc/cpu/bit_counts."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import memory, native

fills_results = True


def unsupported(packed: torch.Tensor) -> str | None:
    return native.cpu_unsupported("bit_counts", packed)


def run(packed: torch.Tensor) -> torch.Tensor:
    width = packed.shape[-1]
    counts = memory.empty((8 * width,), torch.int64)
    packed = packed.contiguous()
    native.cpu.bit_counts(packed, counts, packed.numel() // width, width, torch.get_num_threads())
    return counts
