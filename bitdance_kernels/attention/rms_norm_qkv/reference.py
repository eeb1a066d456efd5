"""rms_norm_qkv in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import packed_weight, rms_norm
from bitdance_kernels.attention._shared import append
from bitdance_kernels.attention._shared.rotation import working_dtype


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
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
    n = rms_norm.forward(x, norm_weight, eps)
    D = k_cache.shape[3]
    layout = ("rope", None) if interleaved else ("rope_half", D)
    qkv = F.linear(n, packed_weight.matrix(weight, *layout, dtype=x.dtype), bias)
    return append.forward(
        qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, D)),
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
