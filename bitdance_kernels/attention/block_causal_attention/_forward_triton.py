"""The forward kernel: one program for each tile of queries of a head."""

from __future__ import annotations

import triton
import triton.language as tl

from bitdance_kernels.attention.block_causal_attention._tiles_triton import (
    at_border,
    cleared,
    exp_of,
    intervals,
    is_seen,
    load_rows,
    load_whole,
    place,
    scores_of,
    store_rows,
    stretches,
)

# Sizes that differ between batches: no separate kernel for multiples of 16 or for 1.
CHANGING = ("T", "Tk", "H", "group")


@triton.jit
def _attend(
    peak, total, sums, q, k, v, first, start, end, whole_from, whole_to, factor,
    PRECISION: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys, from key `first` on; with WHOLE every query sees all of it."""
    scores = scores_of(q, k, first, start, end, whole_from, whole_to, PRECISION, WHOLE)
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    base = new_peak * factor
    if not WHOLE:  # a query that has seen no key yet has the peak -inf, and -inf - -inf is NaN
        base = tl.where(new_peak == float("-inf"), 0.0, base)
    weights = exp_of(scores * factor - base[:, None], q)
    shrink = exp_of(peak * factor - base, q)
    total = total * shrink + tl.sum(weights, axis=1)
    sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision=PRECISION)
    return new_peak, total, sums


@triton.jit(do_not_specialize=CHANGING)
def block_causal_forward_kernel(
    q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, out_ptr, lse_ptr, T, Tk, H, group, factor,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, start_b, end_b,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Online softmax: the largest score so far, the sum of weights, the sum of weights times v."""
    tile, b, h = place(tl.cdiv(T, QUERIES), H)
    # The last tile ends with the last query. So the one that lacks rows is the first, which sees
    # the fewest keys; and tiles of whole patches begin with one, as a sequence ends with one.
    # Under a causal mask the last tiles see the most keys; starting with them balances the load.
    # A tile has the rows up to `past`; a descriptor must not be asked for rows before the first.
    past = T - tile * QUERIES
    row = tl.maximum(past - QUERIES, 0)
    inside = row + tl.arange(0, QUERIES) < past
    kv_h = h // group
    if not DESCRIBED:
        q_ptr += b * q_b + h * q_h
        k_ptr += b * k_b + kv_h * k_h
        v_ptr += b * v_b + kv_h * v_h
    out_ptr += (b * T * H + h) * D
    start_ptr += b * start_b
    end_ptr += b * end_b
    start, end, low, high, whole_from, whole_to, gaps = intervals(
        start_ptr, end_ptr, row, past, Tk, QUERIES
    )
    q = load_rows(q_ptr, b, h, row, q_t, inside, D, WIDTH, DESCRIBED)
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    APART: tl.constexpr = q.dtype != tl.float32  # else two loops leave too few registers
    begin, stop, before, borders = stretches(low, high, whole_from, whole_to, KEYS, APART)
    # Those at the borders, mostly one, come first: what waits for masks overlaps with no product.
    for i in range(borders):
        first = at_border(i, low, stop, before, KEYS)
        seen = is_seen(
            start_ptr, end_ptr, row, past, first + tl.arange(0, KEYS), high, gaps, QUERIES
        )
        k = load_rows(k_ptr, b, kv_h, first, k_t, seen, D, WIDTH, DESCRIBED)
        v = load_rows(v_ptr, b, kv_h, first, v_t, seen, D, WIDTH, DESCRIBED)
        v = cleared(v, seen, DESCRIBED)  # a key's own scores are masked
        peak, total, sums = _attend(
            peak, total, sums, q, k, v, first, start, end, whole_from, whole_to, factor,
            PRECISION, WHOLE=False,
        )  # fmt: skip
    if APART:
        for first in range(begin, stop, KEYS):
            k = load_whole(k_ptr, b, kv_h, first, k_t, KEYS, D, WIDTH, DESCRIBED)
            v = load_whole(v_ptr, b, kv_h, first, v_t, KEYS, D, WIDTH, DESCRIBED)
            peak, total, sums = _attend(
                peak, total, sums, q, k, v, first, start, end, whole_from, whole_to, factor,
                PRECISION, WHOLE=True,
            )  # fmt: skip
    blind = start >= end
    total = tl.where(blind, 1.0, total)
    out = tl.where(blind[:, None], 0.0, sums / total[:, None])
    if q.dtype == tl.float32:
        lse = peak * factor + tl.log(total)
    else:
        lse = (peak * factor + tl.log2(total)) * 0.6931471805599453
    lse = tl.where(blind, float("-inf"), lse)
    # By pointers: a descriptor would also store the rows of the next tile.
    store_rows(out_ptr, out, b, h, row, H * D, inside, D, WIDTH, DESCRIBED=False)
    tl.store(lse_ptr + ((b * H + h) * T + row + tl.arange(0, QUERIES)), lse, mask=inside)
