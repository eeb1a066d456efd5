"""hamming_distance and nearest_codes in CUDA C++: csrc/cuda/hamming_distance."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels._shared.rows import as_rows

# kMaxNearestBits of csrc/cuda/hamming_distance: a warp counts every distance.
_MAX_BITS = 8192
_MAX_CODES = 2**32 - 1


def unsupported(a: torch.Tensor, b: torch.Tensor) -> str | None:
    return native.cuda_unsupported("hamming_distance", a, b)


def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    distance = a.new_empty((a.shape[0], b.shape[0]), dtype=torch.int32)
    (a, queries, a_stride), (b, codes, b_stride) = as_rows(a), as_rows(b)
    native.cuda.hamming_distance(
        a, b, distance, queries, codes, a.shape[1], a_stride, b_stride, *native.stream(a.device)
    )
    return distance


def unsupported_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> str | None:
    if 8 * a.shape[1] > _MAX_BITS:
        return f"it compares codes of at most {_MAX_BITS} bits, got {8 * a.shape[1]}"
    if b.shape[0] > _MAX_CODES:
        return f"it searches at most {_MAX_CODES} codes, got {b.shape[0]}"
    return native.cuda_unsupported("nearest_codes", a, b)


def run_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    index = a.new_empty((a.shape[0], k), dtype=torch.int64)
    distance = a.new_empty((a.shape[0], k), dtype=torch.int32)
    (a, queries, a_stride), (b, codes, b_stride) = as_rows(a), as_rows(b)
    native.cuda.nearest_codes(
        a,
        b,
        index,
        distance,
        queries,
        codes,
        a.shape[1],
        a_stride,
        b_stride,
        k,
        *native.stream(a.device),
    )
    return index, distance
