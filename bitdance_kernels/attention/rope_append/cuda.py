"""rope_append in CUDA C++: csrc/cuda/rope_append."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native

_MAX_CHANNELS = 256


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
    D = k_cache.shape[3]
    if D % 8 != 0 or D > _MAX_CHANNELS:
        return f"it takes heads of 8 to {_MAX_CHANNELS} channels in eights, got D = {D}"
    if not (native.rows_are_aligned(k_cache) and native.rows_are_aligned(v_cache)):
        return "it writes caches whose heads lie, without gaps, at multiples of 16 bytes"
    given = [x for x in (qkv, freqs, q_norm, k_norm) if x is not None]
    return native.cuda_unsupported("rope_append", *given) or native.dtype_unsupported(
        *(x.dtype for x in given)
    )


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
    D = k_cache.shape[3]
    q = qkv.new_empty((B, P, num_heads, D))
    qkv = native.aligned_rows(qkv)
    position, freqs = position.contiguous(), freqs.contiguous()
    q_norm = None if q_norm is None else q_norm.contiguous()
    k_norm = None if k_norm is None else k_norm.contiguous()
    native.cuda.rope_append(
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
        *qkv.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        eps,
        interleaved,
        *(
            native.DTYPE_CODES[torch.float32 if x is None else x.dtype]
            for x in (qkv, freqs, q_norm, k_norm)
        ),
        *native.stream(qkv.device),
    )
    return q
