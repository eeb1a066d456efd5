"""What the attention ops share: intervals as masks, the default scale, checks of [B, T, H, D]."""

from __future__ import annotations

import torch

from bitdance_kernels import _checks


def visible(start: torch.Tensor, end: torch.Tensor, keys: int) -> torch.Tensor:
    """Whether query i sees key j, start_i <= j < end_i: bool [..., T, keys]."""
    j = torch.arange(keys, dtype=torch.int32, device=start.device)
    return (j >= start[..., None]) & (j < end[..., None])


def seen(start: torch.Tensor, end: torch.Tensor, keys: int) -> torch.Tensor:
    """Whether any query sees key j: bool [..., keys], in O(T + keys) memory.

    As both ends never decrease, the queries with end > j are a tail of the sequence and those with
    start <= j a head of it; j is seen where the two overlap.
    """
    j = torch.arange(keys, dtype=torch.int32, device=start.device)
    j = j.expand(*start.shape[:-1], keys).contiguous()
    first = torch.searchsorted(end.contiguous(), j, right=True)
    last = torch.searchsorted(start.contiguous(), j, right=True)
    return first < last


def scale_or_default(scale: float | None, q: torch.Tensor) -> float:
    """`scale`, or 1 / sqrt(D). (Of a `q` too small to have a D: 1, and the op's check refuses.)"""
    if scale is not None:
        return float(scale)
    return float(q.shape[-1]) ** -0.5 if q.dim() and q.shape[-1] else 1.0


def check_heads(
    op: str, q: torch.Tensor, k_name: str, k: torch.Tensor, v_name: str, v: torch.Tensor, rows: str
) -> None:
    """Check q [B, `rows`, H, D] against keys and values [B, Tk, Hkv, D] of the same dtype."""
    _checks.dtype(op, "q", q, _checks.FLOATS)
    _checks.dtype(op, k_name, k, (q.dtype,))
    _checks.dtype(op, v_name, v, (q.dtype,))
    for name, tensor in (("q", q), (k_name, k), (v_name, v)):
        _checks.rank(op, name, tensor, 4)
    _checks.same_device(op, "q", q, **{k_name: k, v_name: v})
    B, _, H, D = q.shape
    _, Tk, Hkv, _ = k.shape
    if D == 0:
        raise _checks.fail(op, "q", f"[B, {rows}, H, D] with D > 0", f"shape {list(q.shape)}")
    _checks.shape(op, k_name, k, (B, Tk, Hkv, D), "[B, Tk, Hkv, D]")
    _checks.shape(op, v_name, v, (B, Tk, Hkv, D), "[B, Tk, Hkv, D]")
    if Hkv == 0 or H % Hkv != 0:
        raise _checks.fail(op, k_name, f"[B, Tk, Hkv, D] with Hkv a divisor of H = {H}", f"{Hkv}")
