"""Tiles of rows of block_causal_attention in Triton: their values, and what they see."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(tiles, H):
    """Tile, batch row and head of this program; offsets from these are in int64."""
    program = tl.program_id(0)
    rest = (program // tiles).to(tl.int64)
    return program % tiles, rest // H, rest % H


@triton.jit
def load_rows(x_ptr, first, stride, keep, D: tl.constexpr, WIDTH: tl.constexpr):
    """[rows, WIDTH] from row `first` on; 0 in rows that are not to `keep` and in columns past D."""
    row = first + tl.arange(0, keep.shape[0]).to(tl.int64)
    column = tl.arange(0, WIDTH)
    mask = keep[:, None]
    if D != WIDTH:
        mask = mask & (column < D)[None, :]
    return tl.load(x_ptr + (row[:, None] * stride + column[None, :]), mask=mask, other=0.0)


@triton.jit
def store_rows(x_ptr, x, first, stride, keep, D: tl.constexpr, WIDTH: tl.constexpr):
    row = first + tl.arange(0, keep.shape[0]).to(tl.int64)
    column = tl.arange(0, WIDTH)
    at = x_ptr + (row[:, None] * stride + column[None, :])
    tl.store(at, x.to(x_ptr.dtype.element_ty), mask=keep[:, None] & (column < D)[None, :])


@triton.jit
def intervals(start_ptr, end_ptr, first, count, others, ROWS: tl.constexpr):
    """What ROWS rows see of `others`, [start, end); nothing for rows past the last of `count`.

    Then what some of them see, [low, high), and what all see, [whole_from, whole_to); and whether
    there are gaps: others between low and high that none of them sees.
    """
    head = first.to(tl.int64)
    row = head + tl.arange(0, ROWS)
    last = tl.minimum(head + ROWS, count) - 1
    start = tl.load(start_ptr + row, mask=row <= last, other=0)
    end = tl.minimum(tl.load(end_ptr + row, mask=row <= last, other=0), others)
    low = tl.maximum(tl.load(start_ptr + head), 0)
    high = tl.minimum(tl.load(end_ptr + last), others)
    whole_from = tl.load(start_ptr + last)
    whole_to = tl.minimum(tl.load(end_ptr + head), others)
    following = tl.load(start_ptr + (row + 1), mask=row < last, other=0)
    gaps = tl.max(((following > end) & (row < last)).to(tl.int32), axis=0) > 0
    return start, end, low, high, whole_from, whole_to, gaps


@triton.jit
def count_at_most(values_ptr, count, bound, TRIPS: tl.constexpr):
    """How many of the `count` values, which never decrease, are at most `bound`; for each bound."""
    low = tl.zeros_like(bound)
    high = low + count
    for _ in tl.static_range(TRIPS):
        open = low < high
        middle = (low + high) // 2
        value = tl.load(values_ptr + middle.to(tl.int64), mask=open, other=0)
        low = tl.where(open & (value <= bound), middle + 1, low)
        high = tl.where(open & (value > bound), middle, high)
    return low


@triton.jit
def seen(start_ptr, end_ptr, first, count, other, high, gaps, ROWS: tl.constexpr):
    """Whether any of the ROWS rows from `first` on sees each `other`.

    What none sees is read as 0: a weight of 0 would not undo a NaN.
    """
    seen = other < high
    if gaps:  # seldom; and a search needs fewer registers than a look at every pair
        TRIPS: tl.constexpr = 8
        tl.static_assert(ROWS < 2**TRIPS)
        rows = tl.minimum(count - first, ROWS)
        begun = count_at_most(start_ptr + first.to(tl.int64), rows, other, TRIPS)
        over = count_at_most(end_ptr + first.to(tl.int64), rows, other, TRIPS)
        seen = seen & (over < begun)
    return seen


@triton.jit
def stretches(low, high, whole_from, whole_to, STEP: tl.constexpr):
    """Of the tiles of STEP others from `low` on: where the whole ones begin and stop.

    Then how many are at the borders: before them, and all together.
    """
    # Values that make no sense lead nowhere else: what is whole lies in [low, high), and no
    # difference wraps around.
    whole_from = tl.minimum(tl.maximum(whole_from, low), tl.maximum(high, low))
    whole_to = tl.minimum(tl.maximum(whole_to, low), high)
    begin = low + tl.cdiv(whole_from - low, STEP) * STEP
    stop = begin + tl.maximum(whole_to - begin, 0) // STEP * STEP
    before = tl.cdiv(tl.maximum(tl.minimum(begin, high) - low, 0), STEP)
    return begin, stop, before, before + tl.cdiv(tl.maximum(high - stop, 0), STEP)


@triton.jit
def at_border(i, low, stop, before, STEP: tl.constexpr):
    """Where the i-th tile at the borders begins."""
    return tl.where(i < before, low + i * STEP, stop + (i - before) * STEP)


@triton.jit
def load_whole(x_ptr, first, stride, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """``_load_rows`` where all ROWS rows are there."""
    if D == WIDTH:
        row = first + tl.arange(0, ROWS).to(tl.int64)
        x = tl.load(x_ptr + (row[:, None] * stride + tl.arange(0, WIDTH)[None, :]))
    else:
        x = load_rows(x_ptr, first, stride, tl.full([ROWS], 1, tl.int1), D, WIDTH)
    return x


@triton.jit
def is_finite(x):
    """Whether all of a tile is."""
    return tl.max(tl.max((x - x != 0).to(tl.int32), axis=1), axis=0) == 0


@triton.jit
def load_one(x_ptr, row, stride, D: tl.constexpr, WIDTH: tl.constexpr):
    """[1, WIDTH], one row."""
    return load_rows(x_ptr, row, stride, tl.full([1], 1, tl.int1), D, WIDTH)


@triton.jit
def store_one(x_ptr, x, row, stride, D: tl.constexpr, WIDTH: tl.constexpr):
    store_rows(x_ptr, x, row, stride, tl.full([1], 1, tl.int1), D, WIDTH)


@triton.jit
def interval(start_ptr, end_ptr, row, others):
    """What one row sees of `others`, [start, end)."""
    at = row + tl.arange(0, 1).to(tl.int64)
    start = tl.max(tl.load(start_ptr + at), axis=0)
    end = tl.max(tl.load(end_ptr + at), axis=0)
    return tl.maximum(start, 0), tl.minimum(end, others)
