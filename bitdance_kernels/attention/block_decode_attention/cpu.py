"""block_decode_attention in C++: csrc/cpu/block_decode_attention."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.attention._shared.heads import unit_channels

_MAX_CHANNELS = 128  # kDecodeMaxChannels of csrc/cpu/block_decode_attention

fills_results = True


def unsupported(q: torch.Tensor, *_: object) -> str | None:
    reason = native.cpu_unsupported("block_decode_attention", q)
    if reason is not None:
        return reason
    if q.dtype not in native.DTYPE_CODES:
        return f"it does not handle {q.dtype}"
    if q.shape[3] > _MAX_CHANNELS:
        return f"it takes heads of at most {_MAX_CHANNELS} channels, got D = {q.shape[3]}"
    return None


def run(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    B, P, H, D = q.shape
    out = q.new_empty(B, P, H, D)
    q, k_cache, v_cache = map(unit_channels, (q, k_cache, v_cache))
    lengths = lengths.contiguous()
    native.cpu.block_decode_attention(
        q,
        k_cache,
        v_cache,
        lengths,
        out,
        B,
        P,
        H,
        k_cache.shape[2],
        D,
        k_cache.shape[1],
        *q.stride()[:3],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        scale,
        native.DTYPE_CODES[q.dtype],
        torch.get_num_threads(),
    )
    return out
