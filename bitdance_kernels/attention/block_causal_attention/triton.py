"""block_causal_attention in Triton: FlashAttention-2 (Dao 2023) over intervals.

Both ends of a query's interval never decrease. So a tile of queries sees one stretch of keys, from
the start of its first row to the end of its last, and all its rows see the keys from the start of
the last to the end of the first: tiles of keys in there are not compared with the intervals, and
those outside the stretch are never visited. Forward, a loop of its own takes the tiles that all
rows see, without masks and branches, so that loads and products overlap.

The backward pass needs no atomic operation, so it gives the same bits each time: one kernel keeps a
tile of queries and sums over keys, the other keeps a tile of keys and sums over the queries of its
group of heads. The queries that see a key are an interval again, with ends that never decrease, so
the second kernel is the first with the roles exchanged.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels.attention.block_causal_attention import config

_SEARCHES = 128  # keys per program of the transposition
# Sizes that differ between batches: no separate kernel for multiples of 16 or for 1.
_CHANGING = ("T", "Tk", "H", "group")


@triton.jit
def _place(tiles, H):
    """Tile, batch row and head of this program; offsets from these are in int64."""
    program = tl.program_id(0)
    rest = (program // tiles).to(tl.int64)
    return program % tiles, rest // H, rest % H


@triton.jit
def _load_rows(x_ptr, first, stride, keep, D: tl.constexpr, WIDTH: tl.constexpr):
    """[rows, WIDTH] from row `first` on; 0 in rows without `keep` and in columns past D."""
    row = first + tl.arange(0, keep.shape[0]).to(tl.int64)
    column = tl.arange(0, WIDTH)
    mask = keep[:, None]
    if D != WIDTH:
        mask = mask & (column < D)[None, :]
    return tl.load(x_ptr + (row[:, None] * stride + column[None, :]), mask=mask, other=0.0)


@triton.jit
def _store_rows(x_ptr, x, first, stride, keep, D: tl.constexpr, WIDTH: tl.constexpr):
    row = first + tl.arange(0, keep.shape[0]).to(tl.int64)
    column = tl.arange(0, WIDTH)
    at = x_ptr + (row[:, None] * stride + column[None, :])
    tl.store(at, x.to(x_ptr.dtype.element_ty), mask=keep[:, None] & (column < D)[None, :])


@triton.jit
def _intervals(start_ptr, end_ptr, first, count, others, ROWS: tl.constexpr):
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
def _count(values_ptr, count, bound, TRIPS: tl.constexpr):
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
def _seen(start_ptr, end_ptr, first, count, other, high, gaps, ROWS: tl.constexpr):
    """Whether any of the ROWS rows from `first` on sees each `other`.

    What none sees is read as 0: a weight of 0 would not undo a NaN.
    """
    seen = other < high
    if gaps:  # rare; a search needs fewer registers than comparing every pair
        TRIPS: tl.constexpr = 8
        tl.static_assert(ROWS < 2**TRIPS)
        rows = tl.minimum(count - first, ROWS)
        begun = _count(start_ptr + first.to(tl.int64), rows, other, TRIPS)
        over = _count(end_ptr + first.to(tl.int64), rows, other, TRIPS)
        seen = seen & (over < begun)
    return seen


@triton.jit
def _scores(rows, others, first, start, end, whole_from, whole_to, OTHERS: tl.constexpr):
    """Products of rows and others; -inf where a row does not see one of OTHERS from `first` on."""
    scores = tl.dot(rows, tl.trans(others), input_precision="ieee")
    if (first < whole_from) | (first + OTHERS > whole_to):
        other = first + tl.arange(0, OTHERS)
        visible = (other[None, :] >= start[:, None]) & (other[None, :] < end[:, None])
        scores = tl.where(visible, scores, float("-inf"))
    return scores


@triton.jit
def _exp(x, like):
    """Computes e^x for float32 scores, which keep the units of the formula, else 2^x."""
    if like.dtype == tl.float32:
        y = tl.exp(x)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def _exponent(lse, like):
    """Upper bound of the weights' exponents: log-sum-exp in the units of `_exp`."""
    if like.dtype == tl.float32:
        exponent = lse
    else:
        exponent = lse * 1.4426950408889634
    return exponent


@triton.jit
def _stretches(low, high, whole_from, whole_to, STEP: tl.constexpr):
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
def _at_border(i, low, stop, before, STEP: tl.constexpr):
    """Where the i-th tile at the borders begins."""
    return tl.where(i < before, low + i * STEP, stop + (i - before) * STEP)


@triton.jit
def _load_whole(x_ptr, first, stride, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """``_load_rows`` where all ROWS rows are there."""
    if D == WIDTH:
        row = first + tl.arange(0, ROWS).to(tl.int64)
        x = tl.load(x_ptr + (row[:, None] * stride + tl.arange(0, WIDTH)[None, :]))
    else:
        x = _load_rows(x_ptr, first, stride, tl.full([ROWS], 1, tl.int1), D, WIDTH)
    return x


@triton.jit
def _attend(
    peak, total, sums, q, k, v, first, start, end, whole_from, whole_to, factor,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys, from key `first` on; with WHOLE every query sees all of it."""
    if WHOLE:
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    else:
        scores = _scores(q, k, first, start, end, whole_from, whole_to, k.shape[0])
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    base = new_peak * factor
    if not WHOLE:  # a query that has seen no key yet has the peak -inf, and -inf - -inf is NaN
        base = tl.where(new_peak == float("-inf"), 0.0, base)
    weights = _exp(scores * factor - base[:, None], q)
    shrink = _exp(peak * factor - base, q)
    total = total * shrink + tl.sum(weights, axis=1)
    sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision="ieee")
    return new_peak, total, sums


@triton.jit(do_not_specialize=_CHANGING)
def _block_causal_forward_kernel(
    q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, out_ptr, lse_ptr, T, Tk, H, group, factor,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, start_b, end_b,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Online softmax: the largest score so far, the sum of weights, the sum of weights times v."""
    tiles = tl.cdiv(T, QUERIES)
    tile, b, h = _place(tiles, H)
    # Under a causal mask the last tiles see the most keys; starting with them balances the load.
    row = (tiles - 1 - tile) * QUERIES
    inside = row + tl.arange(0, QUERIES) < T
    k_ptr += b * k_b + h // group * k_h
    v_ptr += b * v_b + h // group * v_h
    start_ptr += b * start_b
    end_ptr += b * end_b
    start, end, low, high, whole_from, whole_to, gaps = _intervals(
        start_ptr, end_ptr, row, T, Tk, QUERIES
    )
    q = _load_rows(q_ptr + (b * q_b + h * q_h), row, q_t, inside, D, WIDTH)
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    begin, stop, before, borders = _stretches(low, high, whole_from, whole_to, KEYS)
    if q.dtype == tl.float32:  # two loops would not leave enough registers
        stop, before, borders = low, 0, tl.cdiv(tl.maximum(high - low, 0), KEYS)
    else:
        for first in range(begin, stop, KEYS):
            k = _load_whole(k_ptr, first, k_t, KEYS, D, WIDTH)
            v = _load_whole(v_ptr, first, v_t, KEYS, D, WIDTH)
            peak, total, sums = _attend(
                peak, total, sums, q, k, v, first, start, end, whole_from, whole_to, factor,
                WHOLE=True,
            )  # fmt: skip
    for i in range(borders):
        first = _at_border(i, low, stop, before, KEYS)
        key = first + tl.arange(0, KEYS)
        seen = _seen(start_ptr, end_ptr, row, T, key, high, gaps, QUERIES)
        k = _load_rows(k_ptr, first, k_t, seen, D, WIDTH)
        v = _load_rows(v_ptr, first, v_t, seen, D, WIDTH)
        peak, total, sums = _attend(
            peak, total, sums, q, k, v, first, start, end, whole_from, whole_to, factor, WHOLE=False
        )
    blind = start >= end
    total = tl.where(blind, 1.0, total)
    out = tl.where(blind[:, None], 0.0, sums / total[:, None])
    if q.dtype == tl.float32:
        lse = peak * factor + tl.log(total)
    else:
        lse = (peak * factor + tl.log2(total)) * 0.6931471805599453
    lse = tl.where(blind, float("-inf"), lse)
    _store_rows(out_ptr + (b * T * H + h) * D, out, row, H * D, inside, D, WIDTH)
    tl.store(lse_ptr + ((b * H + h) * T + row + tl.arange(0, QUERIES)), lse, mask=inside)


@triton.jit(do_not_specialize=_CHANGING)
def _block_causal_of_queries_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, start_ptr, end_ptr, dq_ptr, delta_ptr,
    T, Tk, H, group, factor, scale, grad_b, grad_t, grad_h, q_b, q_t, q_h, k_b, k_t, k_h,
    v_b, v_t, v_h, start_b, end_b,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Computes dQ = scale dS K, and delta = rowsum(dO * O), which the other kernel reads too."""
    tiles = tl.cdiv(T, QUERIES)
    tile, b, h = _place(tiles, H)
    row = (tiles - 1 - tile) * QUERIES
    inside = row + tl.arange(0, QUERIES) < T
    k_ptr += b * k_b + h // group * k_h
    v_ptr += b * v_b + h // group * v_h
    start_ptr += b * start_b
    end_ptr += b * end_b
    start, end, low, high, whole_from, whole_to, gaps = _intervals(
        start_ptr, end_ptr, row, T, Tk, QUERIES
    )
    sighted = start < end
    q = _load_rows(q_ptr + (b * q_b + h * q_h), row, q_t, sighted, D, WIDTH)
    grad = _load_rows(grad_ptr + (b * grad_b + h * grad_h), row, grad_t, sighted, D, WIDTH)
    out_offset = (b * T * H + h) * D
    out = _load_rows(out_ptr + out_offset, row, H * D, sighted, D, WIDTH)
    at = (b * H + h) * T + row + tl.arange(0, QUERIES)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(delta_ptr + at, delta, mask=inside)
    lse = _exponent(tl.load(lse_ptr + at, mask=sighted, other=0.0), q)
    dq = tl.zeros([QUERIES, WIDTH], tl.float32)
    for first in range(low, high, KEYS):
        key = first + tl.arange(0, KEYS)
        seen = _seen(start_ptr, end_ptr, row, T, key, high, gaps, QUERIES)
        k = _load_rows(k_ptr, first, k_t, seen, D, WIDTH)
        v = _load_rows(v_ptr, first, v_t, seen, D, WIDTH)
        scores = _scores(q, k, first, start, end, whole_from, whole_to, KEYS)
        weights = _exp(scores * factor - lse[:, None], q)
        dweights = tl.dot(grad, tl.trans(v), input_precision="ieee")
        dscores = weights * (dweights - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision="ieee")
    # The scale is that of the scores; a query that sees nothing contributes nothing.
    dq = tl.where(sighted[:, None], dq * scale, 0.0)
    _store_rows(dq_ptr + out_offset, dq, row, H * D, inside, D, WIDTH)


@triton.jit(do_not_specialize=_CHANGING)
def _block_causal_transpose_kernel(
    start_ptr, end_ptr, first_ptr, past_ptr, T, Tk, start_b, end_b, TRIPS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """For each key the queries that see it, [first, past): those with end > key >= start."""
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    b = tl.program_id(1).to(tl.int64)
    first = _count(end_ptr + b * end_b, T, key, TRIPS)
    past = _count(start_ptr + b * start_b, T, key, TRIPS)
    tl.store(first_ptr + (b * Tk + key), first, mask=key < Tk)
    tl.store(past_ptr + (b * Tk + key), past, mask=key < Tk)


@triton.jit(do_not_specialize=_CHANGING)
def _block_causal_of_keys_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, first_ptr, past_ptr, dk_ptr, dv_ptr,
    T, Tk, H, group, factor, scale, grad_b, grad_t, grad_h, q_b, q_t, q_h, k_b, k_t, k_h,
    v_b, v_t, v_h, first_b, past_b,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Computes dV = P^T dO, dK = scale dS^T Q; scores and weights are [KEYS, QUERIES] here."""
    tiles = tl.cdiv(Tk, KEYS)
    heads = H // group
    tile, b, head = _place(tiles, heads)
    key = tile * KEYS
    inside = key + tl.arange(0, KEYS) < Tk
    first_ptr += b * first_b
    past_ptr += b * past_b
    start, end, low, high, whole_from, whole_to, gaps = _intervals(
        first_ptr, past_ptr, key, Tk, T, KEYS
    )
    sighted = start < end
    k = _load_rows(k_ptr + (b * k_b + head * k_h), key, k_t, sighted, D, WIDTH)
    v = _load_rows(v_ptr + (b * v_b + head * v_h), key, v_t, sighted, D, WIDTH)
    dk = tl.zeros([KEYS, WIDTH], tl.float32)
    dv = tl.zeros([KEYS, WIDTH], tl.float32)
    for h in range(head * group, head * group + group):
        q_head = q_ptr + (b * q_b + h * q_h)
        grad_head = grad_ptr + (b * grad_b + h * grad_h)
        head_offset = (b * H + h) * T
        for first in range(low, high, QUERIES):
            row = first + tl.arange(0, QUERIES)
            seen = _seen(first_ptr, past_ptr, key, Tk, row, high, gaps, KEYS)
            q = _load_rows(q_head, first, q_t, seen, D, WIDTH)
            grad = _load_rows(grad_head, first, grad_t, seen, D, WIDTH)
            lse = _exponent(tl.load(lse_ptr + (head_offset + row), mask=seen, other=0.0), q)
            delta = tl.load(delta_ptr + (head_offset + row), mask=seen, other=0.0)
            scores = _scores(k, q, first, start, end, whole_from, whole_to, QUERIES)
            weights = _exp(scores * factor - lse[None, :], q)
            dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision="ieee")
            dweights = tl.dot(v, tl.trans(grad), input_precision="ieee")
            dscores = weights * (dweights - delta[None, :])
            dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision="ieee")
    head_offset = (b * Tk * heads + head) * D
    _store_rows(dk_ptr + head_offset, dk * scale, key, heads * D, inside, D, WIDTH)
    _store_rows(dv_ptr + head_offset, dv, key, heads * D, inside, D, WIDTH)


def unsupported(q: torch.Tensor, *inputs: Any) -> str | None:
    scale = inputs[-1]
    if q.shape[-1] > config.MAX_WIDTH:
        return f"it handles D up to {config.MAX_WIDTH}, got {q.shape[-1]}"
    if not scale > 0:
        return f"it needs a scale over 0, got {scale}"
    return triton_support.unsupported(q)


def run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    B, T, H, D = q.shape
    Tk, Hkv = k.shape[1:3]
    q, k, v = _adjacent(q), _adjacent(k), _adjacent(v)
    start, end = _by_row(start, B), _by_row(end, B)
    out = q.new_empty(q.shape)
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    width = _width(D)
    with triton_support.on_device(q):
        tile = config.forward(width, q.element_size(), triton_support.capability(q.device))
        _block_causal_forward_kernel[(triton.cdiv(T, tile.queries) * B * H,)](
            q, k, v, start, end, out, lse, T, Tk, H, H // Hkv, _factor(scale, q),
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], start.stride(0), end.stride(0),
            D=D, WIDTH=width, QUERIES=tile.queries, KEYS=tile.keys,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, lse


def unsupported_backward(grad: torch.Tensor, *inputs: Any) -> str | None:
    return unsupported(*inputs)


def run_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    B, T, H, D = q.shape
    Tk, Hkv = k.shape[1:3]
    shared = start.dim() == 1 and end.dim() == 1
    grad, q, k, v = _adjacent(grad), _adjacent(q), _adjacent(k), _adjacent(v)
    start, end = _by_row(start, B), _by_row(end, B)
    out, lse = out.contiguous(), lse.contiguous()
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    delta = torch.empty_like(lse)
    numbers = (
        T, Tk, H, H // Hkv, _factor(scale, q), scale, *grad.stride()[:3], *q.stride()[:3],
        *k.stride()[:3], *v.stride()[:3],
    )  # fmt: skip
    width = _width(D)
    with triton_support.on_device(q):
        capability = triton_support.capability(q.device)
        if dq.numel():
            tile = config.query_tile(width, q.element_size(), capability)
            _block_causal_of_queries_kernel[(triton.cdiv(T, tile.queries) * B * H,)](
                grad, q, k, v, out, lse, start, end, dq, delta, *numbers, start.stride(0),
                end.stride(0),
                D=D, WIDTH=width, QUERIES=tile.queries, KEYS=tile.keys,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        if dk.numel():
            tile = config.key_tile(width, q.element_size(), capability)
            first, past = start.new_empty((2, 1 if shared else B, Tk))
            _block_causal_transpose_kernel[(triton.cdiv(Tk, _SEARCHES), len(first))](
                start, end, first, past, T, Tk, start.stride(0), end.stride(0),
                TRIPS=T.bit_length(), KEYS=_SEARCHES,
            )  # fmt: skip
            step = 0 if shared else Tk
            _block_causal_of_keys_kernel[(triton.cdiv(Tk, tile.keys) * B * Hkv,)](
                grad, q, k, v, lse, delta, first, past, dk, dv, *numbers, step, step,
                D=D, WIDTH=width, QUERIES=tile.queries, KEYS=tile.keys,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return dq, dk, dv


def _adjacent(x: torch.Tensor) -> torch.Tensor:
    """`x` [B, T, H, D] with contiguous heads; copied if they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _by_row(x: torch.Tensor, B: int) -> torch.Tensor:
    """[T] or [B, T] as [B, T] with contiguous rows."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x.expand(B, x.shape[-1])


def _factor(scale: float, q: torch.Tensor) -> float:
    """Factor that turns scores into exponents of `_exp`, which saves an operation over e^x."""
    return scale if q.dtype == torch.float32 else scale * math.log2(math.e)


def _width(D: int) -> int:
    """Columns of a tile: a power of two, at least the 16 that a product needs."""
    return max(triton.next_power_of_2(D), 16)
