"""hamming_distance and nearest_codes in C++: csrc/cpu/hamming_distance."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import memory, native

# Codes per block, see csrc/cpu/hamming_distance.
BLOCK = 64
# Neighbours are kept in a sorted list, which is slow for many.
MAX_NEIGHBOURS = 128

fills_results = fills_results_nearest = True
native_functions = ("hamming_distance", "hamming_distance_few", "few_queries", "code_blocks")
native_functions_nearest = ("nearest_codes", "nearest_codes_few", "few_queries", "code_blocks")


def unsupported(a: torch.Tensor, b: torch.Tensor) -> str | None:
    return _missing(native_functions, a, b)


def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # First, so that a result for which there is no memory costs no work.
    distance = memory.empty((a.shape[0], b.shape[0]), torch.int32)
    if len(a) > native.cpu.few_queries(a.shape[1]):  # blocks of codes pay
        _fill(distance, a, blocks(b))
    elif distance.numel() > 0:
        a, b = a.contiguous(), _adjacent(b)
        native.cpu.hamming_distance_few(
            a, b, b.stride(0), distance, *distance.shape, a.shape[1], torch.get_num_threads()
        )
    return distance


def distances(a: torch.Tensor, in_blocks: torch.Tensor, count: int) -> torch.Tensor:
    """Distances to the `count` codes of some blocks, int32 [N, count]."""
    distance = memory.empty((a.shape[0], count), torch.int32)
    _fill(distance, a, in_blocks)
    return distance


def _fill(distance: torch.Tensor, a: torch.Tensor, in_blocks: torch.Tensor) -> None:
    if distance.numel() > 0:
        native.cpu.hamming_distance(
            a.contiguous(), in_blocks, distance, *distance.shape, a.shape[1],
            torch.get_num_threads(),
        )  # fmt: skip


def unsupported_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> str | None:
    if k > MAX_NEIGHBOURS:
        return f"it finds at most {MAX_NEIGHBOURS} neighbours, got {k}"
    return _missing(native_functions_nearest, a, b)


def run_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    if len(a) > native.cpu.few_queries(a.shape[1]):
        return nearest(a, blocks(b), len(b), k)
    index, distance = _results(a, k)
    b = _adjacent(b)
    native.cpu.nearest_codes_few(
        a.contiguous(), b, b.stride(0), index, distance, len(a), len(b), a.shape[1], k,
        torch.get_num_threads(),
    )  # fmt: skip
    return index, distance


def nearest(
    a: torch.Tensor, in_blocks: torch.Tensor, count: int, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and distances of the `k` nearest of the `count` codes of some blocks."""
    index, distance = _results(a, k)
    native.cpu.nearest_codes(
        a.contiguous(), in_blocks, index, distance, len(a), count, a.shape[1], k,
        torch.get_num_threads(),
    )  # fmt: skip
    return index, distance


def _missing(functions: tuple[str, ...], *tensors: torch.Tensor) -> str | None:
    reasons = (native.cpu_unsupported(function, *tensors) for function in functions)
    return next((reason for reason in reasons if reason is not None), None)


def _results(a: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (len(a), k)
    return a.new_empty(shape, dtype=torch.int64), a.new_empty(shape, dtype=torch.int32)


def _adjacent(codes: torch.Tensor) -> torch.Tensor:
    """`codes`, or a copy of them where the bytes of a code are not adjacent."""
    return codes if codes.stride(1) == 1 else codes.contiguous()


def blocks(codes: torch.Tensor) -> torch.Tensor:
    """Codes [M, W] byte by byte: uint8 [ceil(M / 64), W, 64], padded with zeros."""
    codes = _adjacent(codes)
    count, width = codes.shape
    made = codes.new_empty(-(-count // BLOCK), width, BLOCK)
    native.cpu.code_blocks(codes, codes.stride(0), made, count, width, torch.get_num_threads())
    return made
