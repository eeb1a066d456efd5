"""The backward kernels: one that keeps a tile of queries, one that keeps a tile of keys.

The queries that see a key are an interval again, with ends that never decrease, so the second is
the first with the roles exchanged.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bitdance_kernels.attention.block_causal_attention._forward_triton import CHANGING
from bitdance_kernels.attention.block_causal_attention._tiles_triton import (
    at_border,
    cleared,
    count_up_to,
    exp_of,
    exponent_of,
    intervals,
    is_seen,
    load_rows,
    load_whole,
    place,
    scores_of,
    store_rows,
    stretches,
)


@triton.jit
def _add_dq(
    dq, q, grad, k, v, lse, delta, first, start, end, whole_from, whole_to, factor,
    PRECISION: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Add what one tile of keys gives."""
    scores = scores_of(q, k, first, start, end, whole_from, whole_to, PRECISION, WHOLE)
    weights = exp_of(scores * factor - lse[:, None], q)
    dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    dscores = weights * (dweights - delta[:, None])
    return tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=CHANGING)
def block_causal_of_queries_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, start_ptr, end_ptr, dq_ptr, delta_ptr,
    T, Tk, H, group, factor, scale, grad_b, grad_t, grad_h, q_b, q_t, q_h, k_b, k_t, k_h,
    v_b, v_t, v_h, start_b, end_b,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Computes dQ = scale dS K, and delta = rowsum(dO * O), which the other kernel reads too."""
    tile, b, h = place(tl.cdiv(T, QUERIES), H)
    past = T - tile * QUERIES  # see the forward kernel
    row = tl.maximum(past - QUERIES, 0)
    inside = row + tl.arange(0, QUERIES) < past
    kv_h = h // group
    if not DESCRIBED:
        grad_ptr += b * grad_b + h * grad_h
        q_ptr += b * q_b + h * q_h
        k_ptr += b * k_b + kv_h * k_h
        v_ptr += b * v_b + kv_h * v_h
        out_ptr += (b * T * H + h) * D
    dq_ptr += (b * T * H + h) * D
    start_ptr += b * start_b
    end_ptr += b * end_b
    start, end, low, high, whole_from, whole_to, gaps = intervals(
        start_ptr, end_ptr, row, past, Tk, QUERIES
    )
    sighted = start < end
    q = load_rows(q_ptr, b, h, row, q_t, sighted, D, WIDTH, DESCRIBED)
    grad = load_rows(grad_ptr, b, h, row, grad_t, sighted, D, WIDTH, DESCRIBED)
    out = load_rows(out_ptr, b, h, row, H * D, sighted, D, WIDTH, DESCRIBED)
    at = (b * H + h) * T + row + tl.arange(0, QUERIES)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), axis=1)
    delta = tl.where(sighted, delta, 0.0)
    tl.store(delta_ptr + at, delta, mask=inside)
    lse = exponent_of(tl.load(lse_ptr + at, mask=sighted, other=0.0), q)
    dq = tl.zeros([QUERIES, WIDTH], tl.float32)
    begin, stop, before, borders = stretches(low, high, whole_from, whole_to, KEYS, DESCRIBED)
    for i in range(borders):
        first = at_border(i, low, stop, before, KEYS)
        seen = is_seen(
            start_ptr, end_ptr, row, past, first + tl.arange(0, KEYS), high, gaps, QUERIES
        )
        k = cleared(
            load_rows(k_ptr, b, kv_h, first, k_t, seen, D, WIDTH, DESCRIBED), seen, DESCRIBED
        )
        v = cleared(
            load_rows(v_ptr, b, kv_h, first, v_t, seen, D, WIDTH, DESCRIBED), seen, DESCRIBED
        )
        dq = _add_dq(
            dq, q, grad, k, v, lse, delta, first, start, end, whole_from, whole_to, factor,
            PRECISION, WHOLE=False,
        )  # fmt: skip
    if DESCRIBED:
        for first in range(begin, stop, KEYS):
            k = load_whole(k_ptr, b, kv_h, first, k_t, KEYS, D, WIDTH, DESCRIBED)
            v = load_whole(v_ptr, b, kv_h, first, v_t, KEYS, D, WIDTH, DESCRIBED)
            dq = _add_dq(
                dq, q, grad, k, v, lse, delta, first, start, end, whole_from, whole_to, factor,
                PRECISION, WHOLE=True,
            )  # fmt: skip
    # The scale is that of the scores; a query that sees nothing contributes nothing.
    dq = tl.where(sighted[:, None], dq * scale, 0.0)
    store_rows(dq_ptr, dq, b, h, row, H * D, inside, D, WIDTH, DESCRIBED=False)


@triton.jit(do_not_specialize=CHANGING)
def block_causal_transpose_kernel(
    start_ptr, end_ptr, first_ptr, past_ptr, T, Tk, start_b, end_b, TRIPS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """For each key the queries that see it, [first, past): those with end > key >= start."""
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    b = tl.program_id(1).to(tl.int64)
    first = count_up_to(end_ptr + b * end_b, T, key, TRIPS)
    past = count_up_to(start_ptr + b * start_b, T, key, TRIPS)
    tl.store(first_ptr + (b * Tk + key), first, mask=key < Tk)
    tl.store(past_ptr + (b * Tk + key), past, mask=key < Tk)


@triton.jit
def _add_dkv(
    dk, dv, k, v, q, grad, lse, delta, first, start, end, whole_from, whole_to, factor,
    PRECISION: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Add what one tile of queries gives; scores and weights are [KEYS, QUERIES] here."""
    lse = exponent_of(lse, q)
    scores = scores_of(k, q, first, start, end, whole_from, whole_to, PRECISION, WHOLE)
    weights = exp_of(scores * factor - lse[None, :], q)
    dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION)
    dweights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
    dscores = weights * (dweights - delta[None, :])
    dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=CHANGING)
def block_causal_of_keys_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, first_ptr, past_ptr, dk_ptr, dv_ptr,
    T, Tk, H, group, factor, scale, grad_b, grad_t, grad_h, q_b, q_t, q_h, k_b, k_t, k_h,
    v_b, v_t, v_h, first_b, past_b,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Computes dV = P^T dO and dK = scale dS^T Q."""
    heads = H // group
    tile, b, head = place(tl.cdiv(Tk, KEYS), heads)
    key = tile * KEYS
    inside = key + tl.arange(0, KEYS) < Tk
    if not DESCRIBED:
        k_ptr += b * k_b + head * k_h
        v_ptr += b * v_b + head * v_h
        dk_ptr += (b * Tk * heads + head) * D
        dv_ptr += (b * Tk * heads + head) * D
    first_ptr += b * first_b
    past_ptr += b * past_b
    start, end, low, high, whole_from, whole_to, gaps = intervals(
        first_ptr, past_ptr, key, Tk, T, KEYS
    )
    sighted = start < end
    k = load_rows(k_ptr, b, head, key, k_t, sighted, D, WIDTH, DESCRIBED)
    v = load_rows(v_ptr, b, head, key, v_t, sighted, D, WIDTH, DESCRIBED)
    dk = tl.zeros([KEYS, WIDTH], tl.float32)
    dv = tl.zeros([KEYS, WIDTH], tl.float32)
    begin, stop, before, borders = stretches(low, high, whole_from, whole_to, QUERIES, DESCRIBED)
    for h in range(head * group, head * group + group):
        q_head = q_ptr
        grad_head = grad_ptr
        if not DESCRIBED:
            q_head += b * q_b + h * q_h
            grad_head += b * grad_b + h * grad_h
        head_offset = (b * H + h) * T
        for i in range(borders):
            first = at_border(i, low, stop, before, QUERIES)
            row = first + tl.arange(0, QUERIES)
            seen = is_seen(first_ptr, past_ptr, key, Tk, row, high, gaps, KEYS)
            q = cleared(
                load_rows(q_head, b, h, first, q_t, seen, D, WIDTH, DESCRIBED), seen, DESCRIBED
            )
            grad = cleared(
                load_rows(grad_head, b, h, first, grad_t, seen, D, WIDTH, DESCRIBED),
                seen,
                DESCRIBED,
            )
            lse = tl.load(lse_ptr + (head_offset + row), mask=seen, other=0.0)
            delta = tl.load(delta_ptr + (head_offset + row), mask=seen, other=0.0)
            dk, dv = _add_dkv(
                dk, dv, k, v, q, grad, lse, delta, first, start, end, whole_from, whole_to, factor,
                PRECISION, WHOLE=False,
            )  # fmt: skip
        if DESCRIBED:
            for first in range(begin, stop, QUERIES):
                row = first + tl.arange(0, QUERIES)
                q = load_whole(q_head, b, h, first, q_t, QUERIES, D, WIDTH, DESCRIBED)
                grad = load_whole(grad_head, b, h, first, grad_t, QUERIES, D, WIDTH, DESCRIBED)
                lse = tl.load(lse_ptr + (head_offset + row))
                delta = tl.load(delta_ptr + (head_offset + row))
                dk, dv = _add_dkv(
                    dk, dv, k, v, q, grad, lse, delta, first, start, end, whole_from, whole_to,
                    factor, PRECISION, WHOLE=True,
                )  # fmt: skip
    # Whatever a key holds that nobody sees: its weights are masked, its gradient here.
    dk = tl.where(sighted[:, None], dk * scale, 0.0)
    store_rows(dk_ptr, dk, b, head, key, heads * D, inside, D, WIDTH, DESCRIBED)
    store_rows(dv_ptr, dv, b, head, key, heads * D, inside, D, WIDTH, DESCRIBED)
