"""rms_norm_qkv: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks, linear_checks, packed_weight, rms_norm
from bitdance_kernels._shared import moments as moments_of_parts
from bitdance_kernels.attention._shared import append

__all__ = ["rms_norm_qkv"]


def rms_norm_qkv(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    freqs: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    interleaved: bool = True,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    moments: torch.Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> torch.Tensor:
    """RMSNorm, the projection to queries, keys and values, rotation, and the append to the cache.

        n   = norm_weight x / sqrt(mean(x^2) + eps)
        q   = rope_append(n W^T + b, k_cache, v_cache, position, freqs)      in place

    It is the beginning of a layer that decodes few tokens: ``rms_norm_linear`` and ``rope_append``
    in one pass over the weights.

    Args:
        x: P new tokens [B, P, C], floating point, any strides.
        weight: [(H + 2 Hkv) D, C] of the dtype of `x`, D even, or what
            ``pack_weight(weight, "rope")`` makes of it, ``pack_weight(weight, "rope_half",
            head_dim=D)`` where `interleaved` is False; in float8 too.
        norm_weight: [C], any floating dtype.
        k_cache: [B, Tmax, Hkv, D] of the dtype of `x`, P <= Tmax; written in place.
        v_cache: as `k_cache`.
        position: int32 [B], as for ``rope_append``; its values are not checked on a card.
        freqs: [Tf, D / 2, 2], floating point, P <= Tf: cosine and sine of the angles of position t.
        num_heads: H.
        num_kv_heads: Hkv; H by default.
        interleaved: as for ``rope_append``.
        q_norm: as for ``rope_append``; its epsilon is `eps`.
        k_norm: as `q_norm`.
        bias: [(H + 2 Hkv) D] of the dtype of `x`, or None for 0.
        moments: those of `x`, as ``linear_gated_residual`` returns them: float32 [B, P, C / 16, 2].
            They spare a pass over `x` and change nothing else.
        eps: added to the mean square.
        backend: "auto", "reference" or "cuda".

    Returns:
        The rotated queries, [B, P, H, D] of the dtype of `x`, contiguous.

    Raises:
        TypeError: dtypes other than the above.
        ValueError: shapes or devices that do not fit together.
        IndexError: rows outside of the caches or of `freqs`, on the CPU.
        RuntimeError: an argument requires grad.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        n is rounded to the dtype of `x`; sums are float32 (float64 for float64). The reference
        rounds the projection before it rotates. Autocast casts nothing, since the caches are
        written as they are.

    Backends:
        reference, which unpacks a packed weight; CUDA C++ for a packed weight, up to 128 rows,
        float16 or bfloat16 (`norm_weight` may differ) and `freqs` in float32, on cards of
        capability 9.0 or 10.x.
    """
    return _op.call(
        x,
        weight,
        norm_weight,
        k_cache,
        v_cache,
        position,
        freqs,
        num_heads,
        num_heads if num_kv_heads is None else num_kv_heads,
        interleaved,
        q_norm,
        k_norm,
        bias,
        moments,
        eps,
        backend,
    )


def _check(
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
) -> None:
    op = "rms_norm_qkv"
    linear_checks.check(op, x, weight, bias)
    append.check_dtypes(
        op, x, k_cache, v_cache, position, freqs=freqs, q_norm=q_norm, k_norm=k_norm
    )
    checks.rank(op, "x", x, 3, 3)
    rms_norm.check(op, x, norm_weight)
    moments_of_parts.check(op, x, moments)
    append.check_heads(op, num_heads, num_kv_heads)
    D = append.head_width(op, k_cache)
    heads = num_heads + 2 * num_kv_heads
    if packed_weight.features(weight) != heads * D:
        expected = f"[(H + 2 Hkv) D, C] with (H + 2 Hkv) D = {heads} * {D}"
        raise checks.fail(op, "weight", expected, f"shape {list(weight.shape)}")
    if packed_weight.is_packed(weight) and not interleaved and D % packed_weight.TILE != 0:
        expected = f"a matrix where interleaved is False and D = {D} no multiple of 16"
        raise checks.fail(op, "weight", expected, f"shape {list(weight.shape)}")
    append.check_shapes(op, "x", x, k_cache, v_cache, position, freqs, num_kv_heads)
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None:
            checks.shape(op, name, norm, (D,), "[D]")
    checks.same_device(op, "x", x, q_norm=q_norm, k_norm=k_norm)


def _fake(x: torch.Tensor, *others: Any) -> torch.Tensor:
    k_cache, num_heads = others[2], others[6]
    return x.new_empty((*x.shape[:2], num_heads, k_cache.shape[3]))


_op = KernelOp(
    "rms_norm_qkv",
    "(Tensor x, Tensor weight, Tensor norm_weight, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "Tensor position, Tensor freqs, int num_heads, int num_kv_heads, bool interleaved, "
    "Tensor? q_norm, Tensor? k_norm, Tensor? bias, Tensor? moments, float eps) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("cuda", "reference"), "cpu": ("reference",)},
)
