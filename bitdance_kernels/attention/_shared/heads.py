"""What the attention ops share about heads: grouping, the default scale, checks of [B, T, H, D]."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._shared import checks


def by_kv_head(x: torch.Tensor, Hkv: int) -> torch.Tensor:
    """[B, T, H, D] as [B, Hkv, group * T, D]: the query heads of one key-value head together."""
    return x.unflatten(2, (Hkv, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def by_query(x: torch.Tensor, H: int) -> torch.Tensor:
    """The inverse of `by_kv_head`."""
    return x.unflatten(2, (H // x.shape[1], -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def unit_channels(x: torch.Tensor) -> torch.Tensor:
    """`x` [..., D], or a copy of it where the channels of a head are not adjacent."""
    return x if x.stride(-1) == 1 else x.contiguous()


def scale_or_default(op: str, scale: float | None, q: torch.Tensor) -> float:
    """`scale`, or 1 / sqrt(D)."""
    if scale is not None:
        return float(arguments.real(op, "scale", scale))
    arguments.tensor(op, "q", q)
    # A `q` without a D is refused in words by the op's check, so it must get there.
    return float(q.shape[-1]) ** -0.5 if q.dim() and q.shape[-1] else 1.0


def check_heads(
    op: str, q: torch.Tensor, k_name: str, k: torch.Tensor, v_name: str, v: torch.Tensor, rows: str
) -> None:
    """Check q [B, `rows`, H, D] against keys and values [B, Tk, Hkv, D] of the same dtype."""
    checks.dtype(op, "q", q, checks.FLOATS)
    checks.dtype(op, k_name, k, (q.dtype,))
    checks.dtype(op, v_name, v, (q.dtype,))
    for name, tensor in (("q", q), (k_name, k), (v_name, v)):
        checks.rank(op, name, tensor, 4, 4)
    checks.same_device(op, "q", q, **{k_name: k, v_name: v})
    B, _, H, D = q.shape
    _, Tk, Hkv, _ = k.shape
    if D == 0:
        raise checks.fail(op, "q", f"[B, {rows}, H, D] with D > 0", f"shape {list(q.shape)}")
    checks.shape(op, k_name, k, (B, Tk, Hkv, D), "[B, Tk, Hkv, D]")
    checks.shape(op, v_name, v, (B, Tk, Hkv, D), "[B, Tk, Hkv, D]")
    if Hkv == 0 or H % Hkv != 0:
        raise checks.fail(op, k_name, f"[B, Tk, Hkv, D] with Hkv a divisor of H = {H}", f"{Hkv}")
