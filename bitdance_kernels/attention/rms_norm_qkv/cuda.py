"""rms_norm_qkv in CUDA C++: csrc/cuda/common/skinny_product_sm90.cuh."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native, packed_weight, skinny_config, skinny_cuda


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    freqs: torch.Tensor,
    *_: object,
) -> str | None:
    if freqs.dtype != torch.float32:
        return f"it takes freqs in float32, got {freqs.dtype}"
    for cache in (k_cache, v_cache):
        even = all(step % 2 == 0 for step in cache.stride()[:3]) and cache.data_ptr() % 4 == 0
        if cache.stride(3) != 1 or not even:
            return "it takes caches whose channels are adjacent and whose heads start at 4 bytes"
    return skinny_cuda.unsupported(x, weight, norms=(norm_weight,), function="rms_norm_qkv")


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    freqs: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    bias: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    B, P, C = x.shape
    D = k_cache.shape[3]
    q = x.new_empty(B, P, num_heads, D)
    early = (weight, bias, norm_weight)
    ready = tuple(map(skinny_cuda.contiguous, early))
    native.cuda.rms_norm_qkv(
        skinny_cuda.spaced(x),
        skinny_cuda.contiguous(moments),
        *ready,
        eps,
        q,
        k_cache,
        v_cache,
        position.contiguous(),
        freqs.contiguous(),
        B,
        P,
        num_heads,
        num_kv_heads,
        D,
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        C,
        *skinny_config.choose(B * P, C, packed_weight.features(weight), x.device),
        skinny_cuda.overlaps(early, ready),
        *native.stream(x.device),
    )
    return q
