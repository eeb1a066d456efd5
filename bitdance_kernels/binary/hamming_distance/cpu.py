"""hamming_distance and nearest_codes in C++: csrc/cpu/hamming_distance."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import memory, native

# Codes per block, see csrc/cpu/hamming_distance.
_BLOCK = 64
# Queries from which on blocks of codes pay, for all distances and for the nearest.
_MANY, _MANY_NEAREST = 8, 3
# Neighbours are kept in a sorted list, which is slow for many.
_MAX_NEIGHBOURS = 128

native_functions = ("hamming_distance", "hamming_distance_few", "code_blocks")
native_functions_nearest = ("nearest_codes", "nearest_codes_few", "code_blocks")


def unsupported(a: torch.Tensor, b: torch.Tensor) -> str | None:
    return native.cpu_unsupported("hamming_distance", a, b)


def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    distance = memory.empty((a.shape[0], b.shape[0]), torch.int32)
    if distance.numel() == 0:
        return distance
    a, threads = a.contiguous(), torch.get_num_threads()
    if len(a) < _MANY:
        b = _adjacent(b)
        native.cpu.hamming_distance_few(
            a, b, b.stride(0), distance, *distance.shape, a.shape[1], threads
        )
    else:
        native.cpu.hamming_distance(a, _blocks(b), distance, *distance.shape, a.shape[1], threads)
    return distance


def unsupported_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> str | None:
    if k > _MAX_NEIGHBOURS:
        return f"it finds at most {_MAX_NEIGHBOURS} neighbours, got {k}"
    return native.cpu_unsupported("nearest_codes", a, b)


def run_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    index = a.new_empty((a.shape[0], k), dtype=torch.int64)
    distance = a.new_empty((a.shape[0], k), dtype=torch.int32)
    a, threads = a.contiguous(), torch.get_num_threads()
    sizes = (a.shape[0], b.shape[0], a.shape[1], k, threads)
    if len(a) < _MANY_NEAREST:
        b = _adjacent(b)
        native.cpu.nearest_codes_few(a, b, b.stride(0), index, distance, *sizes)
    else:
        native.cpu.nearest_codes(a, _blocks(b), index, distance, *sizes)
    return index, distance


def _adjacent(codes: torch.Tensor) -> torch.Tensor:
    """`codes`, or a copy of them where the bytes of a code are not adjacent."""
    return codes if codes.stride(1) == 1 else codes.contiguous()


def _blocks(codes: torch.Tensor) -> torch.Tensor:
    """Codes [M, W] byte by byte: uint8 [ceil(M / 64), W, 64], padded with zeros."""
    codes = _adjacent(codes)
    count, width = codes.shape
    blocks = codes.new_empty(-(-count // _BLOCK), width, _BLOCK)
    native.cpu.code_blocks(codes, codes.stride(0), blocks, count, width, torch.get_num_threads())
    return blocks
