"""block_causal_attention in plain PyTorch.

The forward and backward formulas are those of FlashAttention-2 (Dao 2023, section 3.1, algorithms 1
and 2), with rows of scores instead of tiles: the backward pass recomputes the weights from the
log-sum-exp L of each query,

    P = exp(scale Q K^T - L),  dV = P^T dO,  dP = dO V^T,  delta = rowsum(dO * O),
    dS = P * (dP - delta),  dQ = scale dS K,  dK = scale dS^T Q.

A weight of 0 does not undo a NaN or an infinity. So products take the finite values alone, and what
is not finite is added where it is seen (``intervals.sum_of_nonfinite``).

On the CPU, where models are trained and run on this reference, a fused kernel of PyTorch computes
the same (``_fused_cpu``) unless float64 is asked for. It knows only weights of 0, so what is not
finite in its results is not believed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels._dispatch.tracing import is_traced
from bitdance_kernels._shared.dtypes import accumulate_dtype
from bitdance_kernels.attention._shared import intervals
from bitdance_kernels.attention._shared.heads import by_kv_head, by_query
from bitdance_kernels.attention.block_causal_attention import _fused_cpu

# Scores stored at a time, so that memory does not grow with T x Tk: 64 MB in float32.
_SCORES = 2**24


def run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    if is_traced():
        return functional(q, k, v, start, end, scale)
    if _fused_cpu.applies(q):
        out, lse = _fused_cpu.forward(q, k, v, start, end, scale)
        if intervals.is_finite(out):
            return out, lse
    return forward(q, k, v, start, end, scale)


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
    if _fused_cpu.applies(q):
        grads = _fused_cpu.backward(grad, q, k, v, out, lse, start, end, scale)
        if intervals.is_finite(*grads):
            return grads
    return backward(grad, q, k, v, out, lse, start, end, scale)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp by the formula, on any device."""
    B, T, H, _ = q.shape
    Tk, Hkv = k.shape[1:3]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    start, end = start.expand(B, T), end.expand(B, T)
    k, v = _without_unseen(start, end, k.to(wide), v.to(wide))
    v, v_nonfinite = intervals.sum_of_nonfinite(v, start, end)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((B, H, T), dtype=wide, device=q.device)
    for b, i in _chunks(B, T, H * Tk):
        out[b, i], lse[b, :, i] = _attend(q[b, i], k[b], v[b], start[b, i], end[b, i], scale)
        out[b, i] += v_nonfinite[b, i].repeat_interleave(H // Hkv, dim=2).to(q.dtype)
    return out, lse


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula at once, for keys and values that are finite where no query sees them."""
    H, (Tk, Hkv) = q.shape[2], k.shape[1:3]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    mask = _mask(start, end, Tk, H // Hkv)
    scores = by_kv_head(q.to(wide) * scale, Hkv) @ k.to(wide).permute(0, 2, 3, 1)
    scores.masked_fill_(~mask, float("-inf"))
    lse = scores.logsumexp(-1, keepdim=True)
    weights = (scores - lse).exp_().masked_fill_(~mask, 0)
    out = by_query(weights @ v.to(wide).transpose(1, 2), H)
    return out.to(q.dtype), by_query(lse, H)[..., 0].transpose(1, 2)


def backward(
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
    """Gradients of q, k and v by the formula, on any device."""
    B, T, H, _ = q.shape
    Tk, Hkv = k.shape[1:3]
    start, end = start.expand(B, T), end.expand(B, T)
    # The weights of a query that sees nothing are 0; 0 times NaN would not be.
    blind = (start >= end)[..., None, None]
    q_wide = q.to(lse.dtype).masked_fill(blind, 0)
    grad = grad.to(lse.dtype).masked_fill(blind, 0)
    k_wide, v_wide = _without_unseen(start, end, k.to(lse.dtype), v.to(lse.dtype))
    seers = intervals.transposed(start, end, Tk)
    q_finite, q_nonfinite = intervals.sum_of_nonfinite(q_wide, *seers)
    grad_finite, grad_nonfinite = intervals.sum_of_nonfinite(grad, *seers)
    k_finite, k_nonfinite = intervals.sum_of_nonfinite(k_wide, start, end)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    # Gradients of the weights have either sign, so whatever is not finite becomes NaN.
    q_nonfinite, k_nonfinite = q_nonfinite * 0, k_nonfinite * 0
    dk, dv = (x.unflatten(2, (Hkv, -1)).sum(3) for x in (q_nonfinite, grad_nonfinite))
    for b, i in _chunks(B, T, H * Tk):
        mask = _mask(start[b, i], end[b, i], Tk, H // Hkv)
        queries, grads = by_kv_head(q_wide[b, i], Hkv), by_kv_head(grad[b, i], Hkv)
        keys, values = k_wide[b].transpose(1, 2), v_wide[b].transpose(1, 2)
        chunk_lse = by_kv_head(lse[b, :, i].transpose(1, 2)[..., None], Hkv)
        weights = (queries @ keys.mT * scale - chunk_lse).exp_().masked_fill_(~mask, 0)
        dv[b] += (weights.mT @ by_kv_head(grad_finite[b, i], Hkv)).transpose(1, 2)
        delta = (grads * by_kv_head(out[b, i].to(lse.dtype), Hkv)).sum(-1, keepdim=True)
        dscores = (grads @ values.mT).sub_(delta).mul_(weights).mul_(scale).masked_fill_(~mask, 0)
        dq[b, i] = by_query(dscores @ k_finite[b].transpose(1, 2), H)
        dq[b, i] += k_nonfinite[b, i].repeat_interleave(H // Hkv, dim=2).to(q.dtype)
        dk[b] += (dscores.mT @ by_kv_head(q_finite[b, i], Hkv)).transpose(1, 2)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def functional(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula for exported programs: without loops over sizes and writes in place."""
    weights, lse, _, _, values = _weights(q, k, v, start, end, scale)
    H, finite = q.shape[2], values.isfinite()
    out = weights @ values.where(finite, 0)
    # A weight of 0 does not remove NaN or infinity, so they are counted where they are visible.
    seen = _mask(start.expand(q.shape[:2]), end.expand(q.shape[:2]), k.shape[1], H // k.shape[2])
    lost = seen.to(out.dtype) @ (~finite).to(out.dtype) > 0
    out = by_query(out.masked_fill(lost, float("nan")), H)
    return out.to(q.dtype), by_query(lse, H)[..., 0].transpose(1, 2)


def functional_backward(
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
    """The gradients as a function of `grad`, q, k and v alone, to be differentiated further."""
    weights, _, queries, keys, values = _weights(q, k, v, start, end, scale)
    grads = by_kv_head(grad.to(weights.dtype), k.shape[2])
    dweights = grads @ values.mT
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
    dq = by_query(dscores @ keys, q.shape[2]) * scale
    dk, dv = dscores.mT @ queries, weights.mT @ grads  # `queries` has the scale
    return dq.to(q.dtype), dk.transpose(1, 2).to(k.dtype), dv.transpose(1, 2).to(v.dtype)


def _weights(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """Weights and their log-sum-exp, and the scaled queries, keys and values they come from."""
    (B, T, H, _), (Tk, Hkv), wide = q.shape, k.shape[1:3], accumulate_dtype(q)
    start, end = start.expand(B, T), end.expand(B, T)
    unseen = ~intervals.visible(start, end, Tk).any(1)[..., None, None]
    k, v = (t.to(wide).masked_fill(unseen, 0).transpose(1, 2) for t in (k, v))
    queries = by_kv_head(q.to(wide) * scale, Hkv)
    mask = _mask(start, end, Tk, H // Hkv)
    blind = ~mask.any(-1, keepdim=True)
    # A blind query has scores of 0 in between, whose softmax and its derivatives are finite.
    scores = queries @ k.mT
    scores = scores.masked_fill(~mask, float("-inf")).masked_fill(blind, 0)
    lse = scores.logsumexp(-1, keepdim=True)
    weights = (scores - lse).exp().masked_fill(~mask, 0)
    return weights, lse.masked_fill(blind, float("-inf")), queries, k, v


def _chunks(B: int, T: int, scores_per_query: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch and of the queries, of at most `_SCORES` scores (but one query) each."""
    rows = max(1, _SCORES // max(1, scores_per_query))
    queries = max(1, min(T, rows))
    batches = max(1, rows // max(1, T))
    for b in range(0, B, batches):
        for i in range(0, T, queries):
            yield slice(b, b + batches), slice(i, i + queries)


def _mask(start: torch.Tensor, end: torch.Tensor, Tk: int, group: int) -> torch.Tensor:
    """[b, 1, group * i, Tk], the order of rows of `by_kv_head`."""
    return intervals.visible(start, end, Tk).repeat(1, group, 1)[:, None]


def _without_unseen(
    start: torch.Tensor, end: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with 0 where no query sees them: weights of 0 do not remove a NaN."""
    unseen = ~intervals.seen(start, end, k.shape[1])[..., None, None]
    return k.masked_fill(unseen, 0), v.masked_fill(unseen, 0)
