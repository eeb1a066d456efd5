"""block_decode_attention in plain PyTorch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from bitdance_kernels._dispatch.tracing import is_traced
from bitdance_kernels._shared.dtypes import accumulate_dtype
from bitdance_kernels.attention._shared.heads import by_kv_head, by_query

# Scores stored at a time, so that a large batch does not need them all: 64 MB in float32.
_SCORES = 2**24


def run(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    if is_traced():
        return functional(q, k_cache, v_cache, lengths, scale)
    # Models run on this reference on the CPU, where PyTorch's fused kernel gets the filled rows.
    # Elsewhere the lengths must stay on the device.
    formula = _cut if q.device.type == "cpu" and q.dtype != torch.float64 else attend
    return formula(q, k_cache, v_cache, lengths, scale)


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The formula, on any device."""
    B, P, H, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    batches = max(1, _SCORES // max(1, H * P * k_cache.shape[1]))
    for first in range(0, B, batches):
        b = slice(first, first + batches)
        out[b] = functional(q[b], k_cache[b], v_cache[b], lengths[b], scale)
    return out


def functional(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The formula with all scores at once."""
    H, Hkv, wide = q.shape[2], k_cache.shape[2], accumulate_dtype(q)
    filled = torch.arange(k_cache.shape[1], dtype=torch.int32, device=q.device)
    empty = filled >= lengths[:, None]
    keys = k_cache.to(wide).transpose(1, 2)
    # A weight of 0 does not remove a NaN, so values past the length are cleared too.
    values = v_cache.to(wide).masked_fill(empty[..., None, None], 0).transpose(1, 2)
    scores = by_kv_head(q.to(wide) * scale, Hkv) @ keys.mT
    scores = scores.masked_fill(empty[:, None, None], float("-inf"))
    weights = scores.softmax(-1).masked_fill(empty[:, None, None], 0)
    return by_query(weights @ values, H).to(q.dtype)


def _cut(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The same for float32 tensors on the CPU, where lengths can be read without waiting."""
    B, _, H, _ = q.shape
    Tmax, Hkv = k_cache.shape[1:3]
    # Caches are contiguous but for views; the kernel's matrix products round by the layout.
    k_cache, v_cache = k_cache.contiguous(), v_cache.contiguous()
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    filled = [max(0, min(length, Tmax)) for length in lengths.tolist()]
    # Rows of equal length are computed together; mostly that is the whole batch.
    same = len(set(filled)) == 1
    for b in [slice(0, B)] if same else [slice(row, row + 1) for row in range(B)]:
        n = filled[b.start]
        if n == 0:
            continue
        attended = F.scaled_dot_product_attention(
            by_kv_head(q[b].float(), Hkv).contiguous(),
            k_cache[b, :n].float().transpose(1, 2),
            v_cache[b, :n].float().transpose(1, 2),
            # Without a mask the kernel treats NaN scores as those of a row that sees nothing.
            attn_mask=q.new_zeros((1, 1, 1, n), dtype=torch.float32),
            scale=scale,
        )
        out[b] = by_query(attended, H)
    return out
