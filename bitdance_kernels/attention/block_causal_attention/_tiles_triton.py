"""Tiles of queries and keys: where they are, what they see, their loads, stores and scores.

A head's rows are read in one of two ways. ``described``: by TMA descriptors of [B, H, T, D], where
the card loads whole tiles by itself, gives 0 outside of the tensor, and a thread holds no
addresses; gradients of keys and values are stored so too. Otherwise by pointers, each with an
offset in int64.
"""

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
def load_rows(
    x, b, h, first, stride, keep, D: tl.constexpr, WIDTH: tl.constexpr, DESCRIBED: tl.constexpr
):
    """[rows, WIDTH] from row `first` on; 0 in rows without `keep` and in columns past D.

    `x` is a pointer to the head, or a descriptor; with that `keep` is left to ``cleared``.
    """
    ROWS: tl.constexpr = keep.shape[0]
    if DESCRIBED:
        loaded = x.load([tl.cast(b, tl.int32), tl.cast(h, tl.int32), first, 0]).reshape(ROWS, WIDTH)
    else:
        row = first + tl.arange(0, ROWS).to(tl.int64)
        column = tl.arange(0, WIDTH)
        mask = keep[:, None]
        if D != WIDTH:
            mask = mask & (column < D)[None, :]
        loaded = tl.load(x + (row[:, None] * stride + column[None, :]), mask=mask, other=0.0)
    return loaded


@triton.jit
def load_whole(
    x, b, h, first, stride, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """``load_rows`` where all ROWS rows are there."""
    if DESCRIBED or D != WIDTH:
        keep = tl.full([ROWS], 1, tl.int1)
        loaded = load_rows(x, b, h, first, stride, keep, D, WIDTH, DESCRIBED)
    else:
        row = first + tl.arange(0, ROWS).to(tl.int64)
        loaded = tl.load(x + (row[:, None] * stride + tl.arange(0, WIDTH)[None, :]))
    return loaded


@triton.jit
def cleared(x, keep, DESCRIBED: tl.constexpr):
    """`x` of ``load_rows`` with 0 in rows without `keep`: a weight of 0 would not undo a NaN."""
    if DESCRIBED:
        x = tl.where(keep[:, None], x, 0.0)
    return x


@triton.jit
def store_rows(
    x, values, b, h, first, stride, keep, D: tl.constexpr, WIDTH: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Store the rows with `keep`; with a descriptor those that the tensor has."""
    if DESCRIBED:
        block = values.to(x.dtype).reshape(1, 1, values.shape[0], WIDTH)
        x.store([tl.cast(b, tl.int32), tl.cast(h, tl.int32), first, 0], block)
    else:
        row = first + tl.arange(0, keep.shape[0]).to(tl.int64)
        column = tl.arange(0, WIDTH)
        mask = keep[:, None] & (column < D)[None, :]
        at = x + (row[:, None] * stride + column[None, :])
        tl.store(at, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def intervals(start_ptr, end_ptr, first, count, others, ROWS: tl.constexpr):
    """What ROWS rows from `first` on see of `others`, [start, end); nothing for those past `count`.

    Then what some of them see, [low, high), and what all see, [whole_from, whole_to); and whether
    there are gaps: others between low and high that none of them sees.
    """
    head = first.to(tl.int64)
    row = head + tl.arange(0, ROWS)
    last = tl.minimum(head + ROWS, count) - 1
    there = row <= last
    start = tl.load(start_ptr + row, mask=there, other=0)
    end = tl.minimum(tl.load(end_ptr + row, mask=there, other=0), others)
    low = tl.maximum(tl.load(start_ptr + head), 0)
    high = tl.minimum(tl.load(end_ptr + last), others)
    whole_from = tl.load(start_ptr + last)
    whole_to = tl.minimum(tl.load(end_ptr + head), others)
    followed = row < last
    following = tl.load(start_ptr + (row + 1), mask=followed, other=0)
    gaps = tl.max(((following > end) & followed).to(tl.int32), axis=0) > 0
    return start, end, low, high, whole_from, whole_to, gaps


@triton.jit
def count_up_to(values_ptr, count, bound, TRIPS: tl.constexpr):
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
def is_seen(start_ptr, end_ptr, first, count, other, high, gaps, ROWS: tl.constexpr):
    """Whether any of the ROWS rows from `first` on sees each `other`."""
    seen = other < high
    if gaps:  # rare; a search needs fewer registers than comparing every pair
        TRIPS: tl.constexpr = 8
        tl.static_assert(ROWS < 2**TRIPS)
        rows = tl.minimum(count - first, ROWS)
        begun = count_up_to(start_ptr + first.to(tl.int64), rows, other, TRIPS)
        over = count_up_to(end_ptr + first.to(tl.int64), rows, other, TRIPS)
        seen = seen & (over < begun)
    return seen


@triton.jit
def stretches(low, high, whole_from, whole_to, STEP: tl.constexpr, APART: tl.constexpr):
    """Of the tiles of STEP others from `low` on: where the whole ones begin and stop.

    Then how many are at the borders: before them, and all together. Without APART all tiles count
    as borders.
    """
    # Values that make no sense lead nowhere else: what is whole lies in [low, high), and no
    # difference wraps around.
    if APART:
        whole_from = tl.minimum(tl.maximum(whole_from, low), tl.maximum(high, low))
        whole_to = tl.minimum(tl.maximum(whole_to, low), high)
    else:
        whole_from = low
        whole_to = low
    begin = low + tl.cdiv(whole_from - low, STEP) * STEP
    stop = begin + tl.maximum(whole_to - begin, 0) // STEP * STEP
    before = tl.cdiv(tl.maximum(tl.minimum(begin, high) - low, 0), STEP)
    return begin, stop, before, before + tl.cdiv(tl.maximum(high - stop, 0), STEP)


@triton.jit
def at_border(i, low, stop, before, STEP: tl.constexpr):
    """Where the i-th tile at the borders begins."""
    return tl.where(i < before, low + i * STEP, stop + (i - before) * STEP)


@triton.jit
def scores_of(
    rows, others, first, start, end, whole_from, whole_to, PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Products of rows and the others from `first` on; -inf where a row does not see one.

    With WHOLE every row sees all of them.
    """
    scores = tl.dot(rows, tl.trans(others), input_precision=PRECISION)
    if not WHOLE:
        OTHERS: tl.constexpr = others.shape[0]
        if (first < whole_from) | (first + OTHERS > whole_to):
            other = first + tl.arange(0, OTHERS)
            visible = (other[None, :] >= start[:, None]) & (other[None, :] < end[:, None])
            scores = tl.where(visible, scores, float("-inf"))
    return scores


@triton.jit
def exp_of(x, like):
    """Computes e^x for float32 scores, which keep the units of the formula, else 2^x."""
    if like.dtype == tl.float32:
        y = tl.exp(x)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def exponent_of(lse, like):
    """Upper bound of the weights' exponents: log-sum-exp in the units of ``exp_of``."""
    if like.dtype == tl.float32:
        exponent = lse
    else:
        exponent = lse * 1.4426950408889634
    return exponent
