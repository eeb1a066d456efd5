"""Rotation of new tokens and their append to the cache: checks and formula."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import checks
from bitdance_kernels.attention._shared.rotation import rotate


def check_heads(op: str, num_heads: int, num_kv_heads: int) -> None:
    """Raise ValueError unless that many heads of queries share those of keys and values."""
    if num_heads < 1:
        raise checks.fail(op, "num_heads", "1 or more", num_heads)
    if num_kv_heads < 1 or num_heads % num_kv_heads != 0:
        raise checks.fail(op, "num_kv_heads", f"a divisor of H = {num_heads}", num_kv_heads)


def check_dtypes(
    op: str,
    x: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    **tables: torch.Tensor | None,
) -> None:
    """Raise TypeError unless the dtypes fit that of `x`."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        checks.dtype(op, name, cache, (x.dtype,))
    checks.dtype(op, "position", position, (torch.int32,))
    for name, table in tables.items():
        if table is not None:
            checks.dtype(op, name, table, checks.FLOATS)


def head_width(op: str, k_cache: torch.Tensor) -> int:
    """D of a cache [B, Tmax, Hkv, D].

    Raises:
        ValueError: it is no such cache, or D is not even.
    """
    checks.rank(op, "k_cache", k_cache, 4, 4)
    D = k_cache.shape[3]
    if D == 0 or D % 2 != 0:
        got = f"shape {list(k_cache.shape)}"
        raise checks.fail(op, "k_cache", "[B, Tmax, Hkv, D] with D even", got)
    return D


def check_shapes(
    op: str,
    name: str,
    x: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    freqs: torch.Tensor,
    num_kv_heads: int,
) -> None:
    """Raise ValueError unless the caches take the tokens of the argument `name`, x [B, P, ...]."""
    B, P = x.shape[:2]
    Tmax, D = k_cache.shape[1], k_cache.shape[3]
    for other, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        checks.shape(op, other, cache, (B, Tmax, num_kv_heads, D), "[B, Tmax, Hkv, D]")
    checks.shape(op, "position", position, (B,), "[B]")
    checks.rank(op, "freqs", freqs, 3, 3)
    checks.shape(op, "freqs", freqs, (freqs.shape[0], D // 2, 2), "[Tf, D / 2, 2]")
    for other, rows in (("k_cache", Tmax), ("freqs", freqs.shape[0])):
        if rows < P:
            raise checks.fail(op, other, f"of at least P = {P} rows", rows)
    checks.same_device(
        op, name, x, k_cache=k_cache, v_cache=v_cache, position=position, freqs=freqs
    )


def forward(
    heads: torch.Tensor,
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
    wide: torch.dtype,
) -> torch.Tensor:
    """The rotated queries of `heads` [B, P, H + 2 Hkv, D]; writes the caches, computing in `wide`.

    Raises:
        IndexError: rows outside of the caches or of `freqs`, on the CPU, before any is written.
    """
    B, P = heads.shape[:2]
    q, k, v = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=2)
    new = torch.arange(P, dtype=torch.int64, device=heads.device)
    rows = position.long()[:, None] + new  # [B, P]
    # Negative indices do not count from the end, and indices past the caches raise before anything
    # is written.
    table = freqs[: k_cache.shape[1]]
    rows = torch.where(rows < 0, len(table), rows)
    angles = table[rows].to(wide)[:, :, None]  # one row of the table for all heads of a token
    q = rotate(_normalised(q.to(wide), q_norm, eps), angles, interleaved)
    k = rotate(_normalised(k.to(wide), k_norm, eps), angles, interleaved)

    batch = torch.arange(B, dtype=torch.int64, device=heads.device)[:, None]
    k_cache[batch, rows] = k.to(k_cache.dtype)
    v_cache[batch, rows] = v
    return q.to(heads.dtype).contiguous()


def _normalised(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMSNorm of each head (Zhang and Sennrich 2019, equation 4)."""
    if weight is None:
        return x
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(x.dtype)
