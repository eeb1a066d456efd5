"""hamming_distance and nearest_codes in C++: csrc/cpu/hamming_distance*.cpp."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels import _native

# Codes of a block, see csrc/cpu/hamming_distance.h.
_BLOCK = 8
# Neighbours are kept in a sorted list, which many would make slow.
_MOST_NEIGHBOURS = 128


def unsupported(a: torch.Tensor, b: torch.Tensor) -> str | None:
    return _native.cpu_unsupported("hamming_distance", a, b)


def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    distance = torch.empty((a.shape[0], b.shape[0]), dtype=torch.int32)
    if distance.numel() == 0:
        return distance
    queries, blocks = _words(a), _blocks(b)
    _native.cpu.hamming_distance(
        queries.data_ptr(),
        blocks.data_ptr(),
        distance.data_ptr(),
        *distance.shape,
        queries.shape[1],
        torch.get_num_threads(),
    )
    return distance


def unsupported_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> str | None:
    if k > _MOST_NEIGHBOURS:
        return f"it finds at most {_MOST_NEIGHBOURS} neighbours, got {k}"
    return _native.cpu_unsupported("nearest_codes", a, b)


def run_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.empty((a.shape[0], k), dtype=torch.int64)
    distance = torch.empty((a.shape[0], k), dtype=torch.int32)
    queries, blocks = _words(a), _blocks(b)
    _native.cpu.nearest_codes(
        queries.data_ptr(),
        blocks.data_ptr(),
        index.data_ptr(),
        distance.data_ptr(),
        a.shape[0],
        b.shape[0],
        queries.shape[1],
        k,
        torch.get_num_threads(),
    )
    return index, distance


def _words(codes: torch.Tensor) -> torch.Tensor:
    """Codes [N, W] as 64-bit words, int64 [N, ceil(W / 8)]; bytes that fill up the last are 0."""
    return F.pad(codes, (0, -codes.shape[1] % 8)).contiguous().view(torch.int64)


def _blocks(codes: torch.Tensor) -> torch.Tensor:
    """The same in blocks of eight codes, word by word: int64 [M / 8, words, 8]."""
    words = _words(codes)
    words = F.pad(words, (0, 0, 0, -len(words) % _BLOCK))
    return words.unflatten(0, (-1, _BLOCK)).transpose(1, 2).contiguous()
