"""rope_append in C++: csrc/cpu/rope_append."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native

_MAX_CHANNELS = 1024  # kMaxHeadChannels of csrc/cpu/common/rotation.h


def unsupported(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    freqs: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    interleaved: bool,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
) -> str | None:
    reason = native.cpu_unsupported("rope_append", qkv)
    if reason is not None:
        return reason
    for tensor in (qkv, freqs, q_norm, k_norm):
        if tensor is not None and tensor.dtype != torch.float32:
            return f"it handles float32 alone, got {tensor.dtype}"
    if k_cache.shape[3] > _MAX_CHANNELS:
        return f"it takes heads of at most {_MAX_CHANNELS} channels, got D = {k_cache.shape[3]}"
    if k_cache.stride(3) != 1 or v_cache.stride(3) != 1:
        return "it writes caches whose channels are adjacent"
    return None


def run(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    freqs: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    interleaved: bool,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    B, P, _ = qkv.shape
    Tmax, D = k_cache.shape[1], k_cache.shape[3]
    q = qkv.new_empty((B, P, num_heads, D))
    qkv = qkv if qkv.stride(2) == 1 else qkv.contiguous()
    position, freqs = position.contiguous(), freqs.contiguous()
    q_norm = None if q_norm is None else q_norm.contiguous()
    k_norm = None if k_norm is None else k_norm.contiguous()
    native.cpu.rope_append(
        qkv,
        q,
        k_cache,
        v_cache,
        position,
        freqs,
        q_norm,
        k_norm,
        B,
        P,
        num_heads,
        num_kv_heads,
        D,
        Tmax,
        freqs.shape[0],
        *qkv.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        eps,
        int(interleaved),
        torch.get_num_threads(),
    )
    return q
