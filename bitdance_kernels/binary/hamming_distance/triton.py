"""hamming_distance and nearest_codes in Triton: products of +-1 in int8 on the tensor cores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows

# Codes of `a` and of `b` that a program compares at a time.
_ROWS, _COLUMNS = 64, 64
# Queries per program of nearest_codes, and codes that it reads at a time.
_QUERIES, _CANDIDATES = 16, 64
# Lists are merged by a sorting network, which many neighbours would make slow.
_MAX_NEIGHBOURS = 64
# Keys are distance * 2^38 + index; a distance is at most 2^24.
_INDEX_BITS = 38


@triton.jit
def _load_signs(
    codes_ptr, rows, count, stride, first, width, ROWS: tl.constexpr, BYTES: tl.constexpr
):
    """Bytes first .. of ROWS codes as int8 [ROWS, 8 * BYTES] of +1 and -1, 0 past the last byte."""
    byte = first + tl.arange(0, BYTES)
    inside = byte < width
    at = rows.to(tl.int64)[:, None] * stride + byte.to(tl.int64)[None, :]
    packed = tl.load(codes_ptr + at, mask=(rows < count)[:, None] & inside[None, :], other=0)
    bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    signs = tl.where(inside[None, :, None], 2 * bits - 1, 0)
    return tl.reshape(signs.to(tl.int8), [ROWS, 8 * BYTES])


@triton.jit
def _distances(
    a_ptr, b_ptr, rows, columns, n, m, width, a_stride, b_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """int32 [ROWS, COLUMNS]: <a, b> = C - 2 distance."""
    product = tl.zeros([ROWS, COLUMNS], tl.int32)
    for first in range(0, width, BYTES):
        a = _load_signs(a_ptr, rows, n, a_stride, first, width, ROWS, BYTES)
        b = _load_signs(b_ptr, columns, m, b_stride, first, width, COLUMNS, BYTES)
        product = tl.dot(a, tl.trans(b), product, out_dtype=tl.int32)
    return (8 * width - product) >> 1


@triton.jit
def _hamming_distance_kernel(
    a_ptr, b_ptr, distance_ptr, n, m, width, a_stride, b_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(m, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    rows = program // tiles * ROWS + tl.arange(0, ROWS)
    columns = program % tiles * COLUMNS + tl.arange(0, COLUMNS)
    found = _distances(
        a_ptr, b_ptr, rows, columns, n, m, width, a_stride, b_stride, ROWS, COLUMNS, BYTES
    )
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    tl.store(distance_ptr + (rows[:, None] * m + columns[None, :]), found, mask=inside)


@triton.jit
def _nearest_codes_kernel(
    a_ptr, b_ptr, index_ptr, distance_ptr, n, m, width, a_stride, b_stride, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BYTES: tl.constexpr, KEPT: tl.constexpr,
    INDEX_BITS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    codes = tl.zeros([], tl.int64) + m
    nothing = -9223372036854775807
    # The largest of -(distance, index): the smallest distance, then the smallest index.
    best = tl.full([ROWS, KEPT], nothing, tl.int64)
    for start in range(0, codes, COLUMNS):
        columns = start + tl.arange(0, COLUMNS).to(tl.int64)
        found = _distances(
            a_ptr, b_ptr, rows, columns, n, m, width, a_stride, b_stride, ROWS, COLUMNS, BYTES
        )
        keys = -((found.to(tl.int64) << INDEX_BITS) | columns[None, :])
        keys = tl.where((columns < m)[None, :], keys, nothing)
        worst = tl.min(best, axis=1)
        if tl.max((keys > worst[:, None]).to(tl.int32)) > 0:  # otherwise none is near enough
            nearest = tl.topk(keys, KEPT)
            both = tl.reshape(tl.join(best, nearest), [ROWS, 2 * KEPT])
            best = tl.topk(both, KEPT)
    rank = tl.arange(0, KEPT)
    inside = (rows < n)[:, None] & (rank < k)[None, :]
    at = rows[:, None] * k + rank[None, :]
    index = (-best) & ((1 << INDEX_BITS) - 1)
    tl.store(index_ptr + at, index, mask=inside)
    tl.store(distance_ptr + at, ((-best) >> INDEX_BITS).to(tl.int32), mask=inside)


def _bytes(width: int) -> int:
    """Bytes of a code compared at a time: at least the 32 bits that a tensor core takes."""
    return min(max(triton.next_power_of_2(width), 4), 16)


def unsupported(a: torch.Tensor, b: torch.Tensor) -> str | None:
    return triton_support.unsupported(a, b)


def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    n, m = a.shape[0], b.shape[0]
    distance = a.new_empty((n, m), dtype=torch.int32)
    if distance.numel() == 0:
        return distance
    (a, _, a_stride), (b, _, b_stride) = as_rows(a), as_rows(b)
    width = a.shape[1]
    with triton_support.on_device(a):
        _hamming_distance_kernel[(triton.cdiv(n, _ROWS) * triton.cdiv(m, _COLUMNS),)](
            a, b, distance, n, m, width, a_stride, b_stride,
            ROWS=_ROWS, COLUMNS=_COLUMNS, BYTES=_bytes(width),
        )  # fmt: skip
    return distance


def unsupported_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> str | None:
    if k > _MAX_NEIGHBOURS:
        return f"it finds at most {_MAX_NEIGHBOURS} neighbours, got {k}"
    if b.shape[0] > 2**_INDEX_BITS:
        return f"it searches at most 2^{_INDEX_BITS} codes, got {b.shape[0]}"
    return triton_support.unsupported(a, b)


def run_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    n, m = a.shape[0], b.shape[0]
    index = a.new_empty((n, k), dtype=torch.int64)
    distance = a.new_empty((n, k), dtype=torch.int32)
    if n == 0:
        return index, distance
    (a, _, a_stride), (b, _, b_stride) = as_rows(a), as_rows(b)
    width = a.shape[1]
    kept = max(triton.next_power_of_2(k), 2)
    with triton_support.on_device(a):
        _nearest_codes_kernel[(triton.cdiv(n, _QUERIES),)](
            a, b, index, distance, n, m, width, a_stride, b_stride, k,
            ROWS=_QUERIES, COLUMNS=max(_CANDIDATES, kept), BYTES=_bytes(width), KEPT=kept,
            INDEX_BITS=_INDEX_BITS,
        )  # fmt: skip
    return index, distance
