"""hamming_distance and nearest_codes in C++: csrc/cpu/hamming_distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import memory, native

# Codes per block, see csrc/cpu/hamming_distance.
_BLOCK = 64
# Neighbours are kept in a sorted list, which is slow for many.
_MAX_NEIGHBOURS = 128


def unsupported(a: torch.Tensor, b: torch.Tensor) -> str | None:
    return native.cpu_unsupported("hamming_distance", a, b)


def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    distance = memory.empty((a.shape[0], b.shape[0]), torch.int32)
    if distance.numel() == 0:
        return distance
    a, blocks = a.contiguous(), _blocks(b)
    native.cpu.hamming_distance(
        a, blocks, distance, *distance.shape, a.shape[1], torch.get_num_threads()
    )
    return distance


def unsupported_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> str | None:
    if k > _MAX_NEIGHBOURS:
        return f"it finds at most {_MAX_NEIGHBOURS} neighbours, got {k}"
    return native.cpu_unsupported("nearest_codes", a, b)


def run_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    index = a.new_empty((a.shape[0], k), dtype=torch.int64)
    distance = a.new_empty((a.shape[0], k), dtype=torch.int32)
    a, blocks = a.contiguous(), _blocks(b)
    native.cpu.nearest_codes(
        a, blocks, index, distance, a.shape[0], b.shape[0], a.shape[1], k, torch.get_num_threads()
    )
    return index, distance


def _blocks(codes: torch.Tensor) -> torch.Tensor:
    """Codes [M, W] byte by byte: uint8 [ceil(M / 64), W, 64], padded with zeros."""
    if len(codes) % _BLOCK:
        codes = F.pad(codes, (0, 0, 0, -len(codes) % _BLOCK))
    return codes.unflatten(0, (-1, _BLOCK)).transpose(1, 2).contiguous()
