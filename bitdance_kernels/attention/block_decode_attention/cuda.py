"""block_decode_attention in CUDA C++: csrc/cuda/block_decode_attention."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import launches, native
from bitdance_kernels.attention.block_decode_attention.config import (
    MAX_CLUSTER,
    MAX_CLUSTER_KEYS,
    split_count,
)

_LOG2_E = 1.4426950408889634
_MAX_CHANNELS = 128
# As in csrc/cuda/block_decode_attention: they decide how many blocks there are.
_KEYS = 64
_FEW_ROWS, _MANY_ROWS = 16, 64


def unsupported(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor, *_: object
) -> str | None:
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it does not handle {q.dtype}"
    if q.shape[3] % 8 != 0 or q.shape[3] > _MAX_CHANNELS:
        return f"it takes heads of 8 to {_MAX_CHANNELS} channels in eights, got D = {q.shape[3]}"
    return native.cuda_unsupported("block_decode_attention", q, k_cache, v_cache, lengths)


def run(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    out = q.new_empty(q.shape)
    q, k_cache, v_cache = (native.aligned_rows(x) for x in (q, k_cache, v_cache))
    lengths = lengths.contiguous()
    B, P, H, D = q.shape
    Tmax, Hkv = k_cache.shape[1:3]
    rows = P * (H // Hkv)
    tile = _FEW_ROWS if rows <= _FEW_ROWS else _MANY_ROWS
    programs = B * Hkv * -(-rows // tile)
    splits = split_count(q.device, programs, tile, Tmax, _KEYS) if programs else 1
    in_clusters = native.sm90_unsupported(q.device) is None and Tmax <= MAX_CLUSTER_KEYS
    if in_clusters:
        splits = min(splits, MAX_CLUSTER)
    part = (B, P, H, splits if splits > 1 and not in_clusters else 0)
    sums = torch.empty((*part, D), dtype=torch.float32, device=q.device)
    top, total = torch.empty((2, *part), dtype=torch.float32, device=q.device)
    native.cuda.block_decode_attention(
        q,
        k_cache,
        v_cache,
        lengths,
        out,
        sums,
        top,
        total,
        B,
        P,
        H,
        Hkv,
        D,
        Tmax,
        splits,
        *q.stride()[:3],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        scale * _LOG2_E,
        native.DTYPE_CODES[q.dtype],
        in_clusters,
        launches.programmatic() if in_clusters else 0,
        *native.stream(q.device),
    )
    return out
