"""rope_append in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels.attention._shared import append
from bitdance_kernels.attention._shared.rotation import working_dtype


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
    return append.forward(
        qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, k_cache.shape[3])),
        k_cache,
        v_cache,
        position,
        freqs,
        num_heads,
        num_kv_heads,
        interleaved,
        q_norm,
        k_norm,
        eps,
        working_dtype(qkv, freqs, q_norm, k_norm),
    )
