"""rms_norm_qkv in CUDA C++: csrc/cuda/common/skinny_product_sm90.cuh."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native, packed_weight, skinny_config, skinny_cuda

_MAX_NORMED_DIM = 256  # of a head, whose tiles one block takes


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    freqs: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    interleaved: bool,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    *_: object,
) -> str | None:
    D = k_cache.shape[3]
    if freqs.dtype != torch.float32:
        return f"it takes freqs in float32, got {freqs.dtype}"
    if k_cache.stride(3) != 1 or v_cache.stride(3) != 1:
        return "it takes caches whose channels are adjacent"
    if _is_normed(q_norm, k_norm) and (D % packed_weight.TILE != 0 or D > _MAX_NORMED_DIM):
        return f"it normalizes heads of up to {_MAX_NORMED_DIM} channels in sixteens, got {D}"
    norms = (norm_weight, q_norm, k_norm)
    return skinny_cuda.unsupported(x, weight, norms=norms, function="rms_norm_qkv")


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
    interleaved: bool,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    bias: torch.Tensor | None,
    moments: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    B, P, C = x.shape
    D = k_cache.shape[3]
    q = x.new_empty(B, P, num_heads, D)
    group = D // packed_weight.TILE if _is_normed(q_norm, k_norm) else 1
    features = packed_weight.features(weight)
    early = (weight, bias, norm_weight)
    ready = tuple(map(skinny_cuda.contiguous, early))
    native.cuda.rms_norm_qkv(
        skinny_cuda.spaced(x),
        skinny_cuda.contiguous(moments),
        ready[0],
        packed_weight.is_float8(weight),
        *ready[1:],
        eps,
        q,
        k_cache,
        v_cache,
        position.contiguous(),
        freqs.contiguous(),
        interleaved,
        skinny_cuda.contiguous(q_norm),
        skinny_cuda.contiguous(k_norm),
        B,
        P,
        num_heads,
        num_kv_heads,
        D,
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        C,
        *skinny_config.choose(B * P, C, features, x.device, group=group),
        skinny_cuda.overlaps(early, ready),
        *native.stream(x.device),
    )
    return q


def _is_normed(q_norm: torch.Tensor | None, k_norm: torch.Tensor | None) -> bool:
    return q_norm is not None or k_norm is not None
