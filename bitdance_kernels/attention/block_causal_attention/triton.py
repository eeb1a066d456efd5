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

A weight of 0 does not undo a NaN or an infinity. A row of a result that is not finite is made
again, of what it sees alone, after its tile is stored: so that the loops keep their registers.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from bitdance_kernels import _triton
from bitdance_kernels.attention.block_causal_attention import _tiles_triton as tiling
from bitdance_kernels.attention.block_causal_attention import config

_SEARCHES = 128  # keys that a program of the transposition takes
# Numbers that differ from batch to batch: a kernel is not compiled anew for those of 16 or 1.
_CHANGING = ("T", "Tk", "H", "group")


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
    """Computes e^x in float32, where scores keep the units of the formula, and 2^x for the rest."""
    if like.dtype == tl.float32:
        y = tl.exp(x)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def _exponent(lse, like):
    """What the weights' exponents are less than: log-sum-exp in the units of `_exp`."""
    if like.dtype == tl.float32:
        exponent = lse
    else:
        exponent = lse * 1.4426950408889634
    return exponent


@triton.jit
def _attend(
    peak, total, sums, q, k, v, first, start, end, whole_from, whole_to, factor,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """One tile of keys more, from key `first` on; with WHOLE every query sees all of it."""
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


@triton.jit
def _product(x, y):
    """Of two rows [1, WIDTH]: [1]."""
    return tl.sum(x.to(tl.float32) * y.to(tl.float32), axis=1)


@triton.jit
def _outputs_again(
    q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, out_ptr, lse_ptr, first, count, Tk, out_t,
    q_t, k_t, v_t, factor, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The outputs of `count` queries from `first` on that are not finite."""
    for row in range(first, first + count):
        if not tiling.is_finite(tiling.load_one(out_ptr, row, out_t, D, WIDTH)):
            at = row + tl.arange(0, 1).to(tl.int64)
            q = tiling.load_one(q_ptr, row, q_t, D, WIDTH)
            exponent = _exponent(tl.load(lse_ptr + at), q)
            low, high = tiling.interval(start_ptr, end_ptr, row, Tk)
            sums = tl.zeros([1, WIDTH], tl.float32)
            for key in range(low, high):
                k = tiling.load_one(k_ptr, key, k_t, D, WIDTH)
                v = tiling.load_one(v_ptr, key, v_t, D, WIDTH)
                sums += _exp(_product(q, k) * factor - exponent, q)[:, None] * v.to(tl.float32)
            tiling.store_one(out_ptr, sums, row, out_t, D, WIDTH)


@triton.jit
def _of_queries_again(
    grad_ptr, q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, dq_ptr, lse_ptr, delta_ptr, first, count,
    Tk, out_t, grad_t, q_t, k_t, v_t, factor, scale, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradients of `count` queries from `first` on that are not finite."""
    for row in range(first, first + count):
        if not tiling.is_finite(tiling.load_one(dq_ptr, row, out_t, D, WIDTH)):
            at = row + tl.arange(0, 1).to(tl.int64)
            q = tiling.load_one(q_ptr, row, q_t, D, WIDTH)
            grad = tiling.load_one(grad_ptr, row, grad_t, D, WIDTH)
            exponent = _exponent(tl.load(lse_ptr + at), q)
            delta = tl.load(delta_ptr + at)
            low, high = tiling.interval(start_ptr, end_ptr, row, Tk)
            sums = tl.zeros([1, WIDTH], tl.float32)
            for key in range(low, high):
                k = tiling.load_one(k_ptr, key, k_t, D, WIDTH)
                v = tiling.load_one(v_ptr, key, v_t, D, WIDTH)
                weight = _exp(_product(q, k) * factor - exponent, q)
                dscore = weight * (_product(grad, v) - delta)
                sums += dscore[:, None] * k.to(tl.float32)
            tiling.store_one(dq_ptr, sums * scale, row, out_t, D, WIDTH)


@triton.jit
def _of_keys_again(
    grad_ptr, q_ptr, k_ptr, v_ptr, first_ptr, past_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, first,
    count, T, group, out_t, grad_t, grad_h, q_t, q_h, k_t, v_t, factor, scale,
    D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradients of `count` keys from `first` on that are not finite, of a group of heads."""
    for row in range(first, first + count):
        if not (
            tiling.is_finite(tiling.load_one(dk_ptr, row, out_t, D, WIDTH))
            & tiling.is_finite(tiling.load_one(dv_ptr, row, out_t, D, WIDTH))
        ):
            k = tiling.load_one(k_ptr, row, k_t, D, WIDTH)
            v = tiling.load_one(v_ptr, row, v_t, D, WIDTH)
            low, high = tiling.interval(first_ptr, past_ptr, row, T)
            dk = tl.zeros([1, WIDTH], tl.float32)
            dv = tl.zeros([1, WIDTH], tl.float32)
            for h in range(group):
                head = h + tl.zeros([1], tl.int64)
                for query in range(low, high):
                    at = head * T + query + tl.arange(0, 1)
                    q = tiling.load_one(q_ptr + head * q_h, query, q_t, D, WIDTH)
                    grad = tiling.load_one(grad_ptr + head * grad_h, query, grad_t, D, WIDTH)
                    exponent = _exponent(tl.load(lse_ptr + at), q)
                    weight = _exp(_product(q, k) * factor - exponent, q)
                    dscore = weight * (_product(grad, v) - tl.load(delta_ptr + at))
                    dk += dscore[:, None] * q.to(tl.float32)
                    dv += weight[:, None] * grad.to(tl.float32)
            tiling.store_one(dk_ptr, dk * scale, row, out_t, D, WIDTH)
            tiling.store_one(dv_ptr, dv, row, out_t, D, WIDTH)


@triton.jit(do_not_specialize=_CHANGING)
def _block_causal_forward_kernel(
    q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, out_ptr, lse_ptr, T, Tk, H, group, factor,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, start_b, end_b,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Online softmax: the largest score so far, the sum of weights, the sum of weights times v."""
    tiles = tl.cdiv(T, QUERIES)
    tile, b, h = tiling.place(tiles, H)
    # Under a causal mask the last tiles see the most keys; begun first, none is left at the end.
    row = (tiles - 1 - tile) * QUERIES
    inside = row + tl.arange(0, QUERIES) < T
    k_ptr += b * k_b + h // group * k_h
    v_ptr += b * v_b + h // group * v_h
    start_ptr += b * start_b
    end_ptr += b * end_b
    start, end, low, high, whole_from, whole_to, gaps = tiling.intervals(
        start_ptr, end_ptr, row, T, Tk, QUERIES
    )
    q = tiling.load_rows(q_ptr + (b * q_b + h * q_h), row, q_t, inside, D, WIDTH)
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    begin, stop, before, borders = tiling.stretches(low, high, whole_from, whole_to, KEYS)
    if q.dtype == tl.float32:  # two loops would not leave enough registers
        stop, before, borders = low, 0, tl.cdiv(tl.maximum(high - low, 0), KEYS)
    else:
        for first in range(begin, stop, KEYS):
            k = tiling.load_whole(k_ptr, first, k_t, KEYS, D, WIDTH)
            v = tiling.load_whole(v_ptr, first, v_t, KEYS, D, WIDTH)
            peak, total, sums = _attend(
                peak, total, sums, q, k, v, first, start, end, whole_from, whole_to, factor,
                WHOLE=True,
            )  # fmt: skip
    for i in range(borders):
        first = tiling.at_border(i, low, stop, before, KEYS)
        key = first + tl.arange(0, KEYS)
        seen = tiling.seen(start_ptr, end_ptr, row, T, key, high, gaps, QUERIES)
        k = tiling.load_rows(k_ptr, first, k_t, seen, D, WIDTH)
        v = tiling.load_rows(v_ptr, first, v_t, seen, D, WIDTH)
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
    out_ptr += (b * T * H + h) * D
    lse_ptr += (b * H + h) * T
    tiling.store_rows(out_ptr, out, row, H * D, inside, D, WIDTH)
    tl.store(lse_ptr + (row.to(tl.int64) + tl.arange(0, QUERIES)), lse, mask=inside)
    if not tiling.is_finite(out):
        tl.debug_barrier()  # rows are read that other threads have written
        _outputs_again(
            q_ptr + (b * q_b + h * q_h), k_ptr, v_ptr, start_ptr, end_ptr, out_ptr, lse_ptr, row,
            tl.minimum(T - row, QUERIES), Tk, H * D, q_t, k_t, v_t, factor, D, WIDTH,
        )  # fmt: skip


@triton.jit(do_not_specialize=_CHANGING)
def _block_causal_of_queries_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, start_ptr, end_ptr, dq_ptr, delta_ptr,
    T, Tk, H, group, factor, scale, grad_b, grad_t, grad_h, q_b, q_t, q_h, k_b, k_t, k_h,
    v_b, v_t, v_h, start_b, end_b,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Computes dQ = scale dS K, and delta = rowsum(dO * O), which the other kernel reads too."""
    tiles = tl.cdiv(T, QUERIES)
    tile, b, h = tiling.place(tiles, H)
    row = (tiles - 1 - tile) * QUERIES
    inside = row + tl.arange(0, QUERIES) < T
    k_ptr += b * k_b + h // group * k_h
    v_ptr += b * v_b + h // group * v_h
    start_ptr += b * start_b
    end_ptr += b * end_b
    start, end, low, high, whole_from, whole_to, gaps = tiling.intervals(
        start_ptr, end_ptr, row, T, Tk, QUERIES
    )
    sighted = start < end
    q = tiling.load_rows(q_ptr + (b * q_b + h * q_h), row, q_t, sighted, D, WIDTH)
    grad = tiling.load_rows(grad_ptr + (b * grad_b + h * grad_h), row, grad_t, sighted, D, WIDTH)
    of_out = (b * T * H + h) * D
    out = tiling.load_rows(out_ptr + of_out, row, H * D, sighted, D, WIDTH)
    at = (b * H + h) * T + row + tl.arange(0, QUERIES)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(delta_ptr + at, delta, mask=inside)
    lse = _exponent(tl.load(lse_ptr + at, mask=sighted, other=0.0), q)
    dq = tl.zeros([QUERIES, WIDTH], tl.float32)
    for first in range(low, high, KEYS):
        key = first + tl.arange(0, KEYS)
        seen = tiling.seen(start_ptr, end_ptr, row, T, key, high, gaps, QUERIES)
        k = tiling.load_rows(k_ptr, first, k_t, seen, D, WIDTH)
        v = tiling.load_rows(v_ptr, first, v_t, seen, D, WIDTH)
        scores = _scores(q, k, first, start, end, whole_from, whole_to, KEYS)
        weights = _exp(scores * factor - lse[:, None], q)
        dweights = tl.dot(grad, tl.trans(v), input_precision="ieee")
        dscores = weights * (dweights - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision="ieee")
    # The scale is that of the scores; a query that sees nothing takes part in nothing.
    dq = tl.where(sighted[:, None], dq * scale, 0.0)
    tiling.store_rows(dq_ptr + of_out, dq, row, H * D, inside, D, WIDTH)
    if not tiling.is_finite(dq):
        tl.debug_barrier()
        of_head = (b * H + h) * T
        _of_queries_again(
            grad_ptr + (b * grad_b + h * grad_h), q_ptr + (b * q_b + h * q_h), k_ptr, v_ptr,
            start_ptr, end_ptr, dq_ptr + of_out, lse_ptr + of_head, delta_ptr + of_head, row,
            tl.minimum(T - row, QUERIES), Tk, H * D, grad_t, q_t, k_t, v_t, factor, scale, D, WIDTH,
        )  # fmt: skip


@triton.jit(do_not_specialize=_CHANGING)
def _block_causal_transpose_kernel(
    start_ptr, end_ptr, first_ptr, past_ptr, T, Tk, start_b, end_b, TRIPS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """For each key the queries that see it, [first, past): those with end > key >= start."""
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    b = tl.program_id(1).to(tl.int64)
    first = tiling.count_at_most(end_ptr + b * end_b, T, key, TRIPS)
    past = tiling.count_at_most(start_ptr + b * start_b, T, key, TRIPS)
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
    tile, b, head = tiling.place(tiles, heads)
    key = tile * KEYS
    inside = key + tl.arange(0, KEYS) < Tk
    first_ptr += b * first_b
    past_ptr += b * past_b
    start, end, low, high, whole_from, whole_to, gaps = tiling.intervals(
        first_ptr, past_ptr, key, Tk, T, KEYS
    )
    sighted = start < end
    k = tiling.load_rows(k_ptr + (b * k_b + head * k_h), key, k_t, sighted, D, WIDTH)
    v = tiling.load_rows(v_ptr + (b * v_b + head * v_h), key, v_t, sighted, D, WIDTH)
    dk = tl.zeros([KEYS, WIDTH], tl.float32)
    dv = tl.zeros([KEYS, WIDTH], tl.float32)
    for h in range(head * group, head * group + group):
        q_head = q_ptr + (b * q_b + h * q_h)
        grad_head = grad_ptr + (b * grad_b + h * grad_h)
        of_head = (b * H + h) * T
        for first in range(low, high, QUERIES):
            row = first + tl.arange(0, QUERIES)
            seen = tiling.seen(first_ptr, past_ptr, key, Tk, row, high, gaps, KEYS)
            q = tiling.load_rows(q_head, first, q_t, seen, D, WIDTH)
            grad = tiling.load_rows(grad_head, first, grad_t, seen, D, WIDTH)
            lse = _exponent(tl.load(lse_ptr + (of_head + row), mask=seen, other=0.0), q)
            delta = tl.load(delta_ptr + (of_head + row), mask=seen, other=0.0)
            scores = _scores(k, q, first, start, end, whole_from, whole_to, QUERIES)
            weights = _exp(scores * factor - lse[None, :], q)
            dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision="ieee")
            dweights = tl.dot(v, tl.trans(grad), input_precision="ieee")
            dscores = weights * (dweights - delta[None, :])
            dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision="ieee")
    of_head = (b * Tk * heads + head) * D
    tiling.store_rows(dk_ptr + of_head, dk * scale, key, heads * D, inside, D, WIDTH)
    tiling.store_rows(dv_ptr + of_head, dv, key, heads * D, inside, D, WIDTH)
    if not (tiling.is_finite(dk) & tiling.is_finite(dv)):
        tl.debug_barrier()
        h = head * group
        of_rows = (b * H + h) * T
        _of_keys_again(
            grad_ptr + (b * grad_b + h * grad_h), q_ptr + (b * q_b + h * q_h),
            k_ptr + (b * k_b + head * k_h), v_ptr + (b * v_b + head * v_h), first_ptr, past_ptr,
            dk_ptr + of_head, dv_ptr + of_head, lse_ptr + of_rows, delta_ptr + of_rows, key,
            tl.minimum(Tk - key, KEYS), T, group, heads * D, grad_t, grad_h, q_t, q_h, k_t, v_t,
            factor, scale, D, WIDTH,
        )  # fmt: skip


def unsupported(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> str | None:
    if q.shape[-1] > config.MOST_WIDTH:
        return f"it handles D up to {config.MOST_WIDTH}, got {q.shape[-1]}"
    if not scale > 0:
        return f"it needs a scale over 0, got {scale}"
    return _triton.unsupported(q) or _triton.dtype_unsupported(q.dtype)


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
    with _triton.on_device(q):
        tile = config.forward(width, q.element_size(), _triton.capability(q.device))
        _block_causal_forward_kernel[(triton.cdiv(T, tile.queries) * B * H,)](
            q, k, v, start, end, out, lse, T, Tk, H, H // Hkv, _factor(scale, q),
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], start.stride(0), end.stride(0),
            D=D, WIDTH=width, QUERIES=tile.queries, KEYS=tile.keys,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, lse


def unsupported_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> str | None:
    return unsupported(q, k, v, start, end, scale)


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
    with _triton.on_device(q):
        capability = _triton.capability(q.device)
        if dq.numel():
            tile = config.of_queries(width, q.element_size(), capability)
            _block_causal_of_queries_kernel[(triton.cdiv(T, tile.queries) * B * H,)](
                grad, q, k, v, out, lse, start, end, dq, delta, *numbers, start.stride(0),
                end.stride(0),
                D=D, WIDTH=width, QUERIES=tile.queries, KEYS=tile.keys,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        if dk.numel():
            tile = config.of_keys(width, q.element_size(), capability)
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
    """`x` [B, T, H, D] with the values of a head next to each other; copied if they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _by_row(x: torch.Tensor, B: int) -> torch.Tensor:
    """[T] or [B, T] as [B, T] with the values of a row next to each other."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x.expand(B, x.shape[-1])


def _factor(scale: float, q: torch.Tensor) -> float:
    """What makes scores exponents of `_exp`: one operation less for each weight than e^x takes."""
    return scale if q.dtype == torch.float32 else scale * math.log2(math.e)


def _width(D: int) -> int:
    """Columns of a tile: a power of two, of which a product takes at least 16."""
    return max(triton.next_power_of_2(D), 16)
