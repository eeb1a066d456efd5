"""rope_append in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels.attention._shared.rotation import rotate, working_dtype


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
    wide = working_dtype(qkv, freqs, q_norm, k_norm)
    heads = qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
    q, k, v = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=2)

    rows = position.long()[:, None] + torch.arange(
        P, dtype=torch.int64, device=qkv.device
    )  # [B, P]
    # Negative indices do not count from the end, and indices past the caches raise before anything
    # is written.
    table = freqs[: k_cache.shape[1]]
    rows = torch.where(rows < 0, len(table), rows)
    angles = table[rows].to(wide)[:, :, None]  # one row of the table for all heads of a token
    q = rotate(_normalised(q.to(wide), q_norm, eps), angles, interleaved)
    k = rotate(_normalised(k.to(wide), k_norm, eps), angles, interleaved)

    batch = torch.arange(B, dtype=torch.int64, device=qkv.device)[:, None]
    k_cache[batch, rows] = k.to(k_cache.dtype)
    v_cache[batch, rows] = v
    return q.to(qkv.dtype).contiguous()


def _normalised(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMSNorm of each head (Zhang and Sennrich 2019, equation 4)."""
    if weight is None:
        return x
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(x.dtype)
