"""rope_append: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels.attention._shared import append

__all__ = ["rope_append"]


def rope_append(
    qkv: torch.Tensor,
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
    eps: float = 1e-6,
    backend: str = "auto",
) -> torch.Tensor:
    """Rotate the queries and keys of P new tokens and append keys and values to the cache.

        q, k, v = split(qkv)                            per token: H heads, then Hkv, then Hkv
        q = q / sqrt(mean(q^2) + eps) * q_norm          per head, only with q_norm; k alike
        q, k = rope(q, k)                               angles freqs[position[b] + p]
        k_cache[b, position[b] + p] = k                 in place
        v_cache[b, position[b] + p] = v                 in place

    Args:
        qkv: [B, P, (H + 2 Hkv) D], float32, float16, bfloat16 or float64, D even; any strides.
        k_cache: [B, Tmax, Hkv, D] of the dtype of `qkv`, P <= Tmax; written in place.
        v_cache: as `k_cache`.
        position: int32 [B], on the device of `qkv`: the first row that is written, the number of
            tokens before. 0 <= position[b], and position[b] + P is at most Tmax and Tf; its values
            are not checked, as that would wait for the GPU.
        freqs: [Tf, D / 2, 2], floating point, P <= Tf: cosine and sine of the angles of position t.
        num_heads: H.
        num_kv_heads: Hkv; H by default.
        interleaved: pair i is channels (2 i, 2 i + 1), as in BitDance's ImageNet models; False:
            channels (i, i + D / 2), as in Qwen3.
        q_norm: [D], floating point: weight of an RMSNorm of each query head before the rotation, as
            in Qwen3. None: no norm.
        k_norm: the same for the key heads.
        eps: of the norms.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        The rotated queries, [B, P, H, D] of the dtype of `qkv`, contiguous.

    Raises:
        TypeError: dtypes other than the above.
        ValueError: shapes or devices that do not fit together.
        IndexError: rows outside of the caches or of `freqs`, on the CPU.
        RuntimeError: an argument requires grad; ``rope`` has a gradient.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Computed in float32 (float64 for float64) and rounded once, to the output and to the cache.

    Backends:
        reference; C++ on the CPU for float32, and triton (both: caches whose channels are
        adjacent); cuda (D a multiple of 8 up to 256, caches whose heads lie at multiples of 16
        bytes). A GPU's read `position` there.

    Example:
        >>> import torch
        >>> k_cache, v_cache = torch.zeros(2, 1, 8, 1, 2).unbind()
        >>> position = torch.tensor([5], dtype=torch.int32)
        >>> no_turn = torch.tensor([1.0, 0.0]).expand(8, 1, 2)
        >>> qkv = torch.arange(1.0, 7.0).view(1, 1, 6)
        >>> rope_append(qkv, k_cache, v_cache, position, no_turn, num_heads=1).flatten()
        tensor([1., 2.])
        >>> k_cache[0, 5, 0], v_cache[0, 5, 0]
        (tensor([3., 4.]), tensor([5., 6.]))
    """
    return _op.call(
        qkv,
        k_cache,
        v_cache,
        position,
        freqs,
        num_heads,
        num_heads if num_kv_heads is None else num_kv_heads,
        interleaved,
        q_norm,
        k_norm,
        eps,
        backend,
    )


def _check(
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
) -> None:
    op = "rope_append"
    checks.dtype(op, "qkv", qkv, checks.FLOATS)
    append.check_dtypes(
        op, qkv, k_cache, v_cache, position, freqs=freqs, q_norm=q_norm, k_norm=k_norm
    )
    checks.rank(op, "qkv", qkv, 3, 3)
    checks.rank(op, "k_cache", k_cache, 4, 4)
    append.check_heads(op, num_heads, num_kv_heads)
    D = append.head_width(op, k_cache)
    heads = num_heads + 2 * num_kv_heads
    if qkv.shape[-1] != heads * D:
        expected = f"[B, P, (H + 2 Hkv) D] with a last dimension of {heads} * {D}"
        raise checks.fail(op, "qkv", expected, f"shape {list(qkv.shape)}")
    append.check_shapes(op, "qkv", qkv, k_cache, v_cache, position, freqs, num_kv_heads)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            checks.shape(op, name, weight, (D,), "[D]")
    checks.same_device(op, "qkv", qkv, q_norm=q_norm, k_norm=k_norm)


def _fake(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    freqs: torch.Tensor,
    num_heads: int,
    *_: Any,
) -> torch.Tensor:
    return qkv.new_empty((*qkv.shape[:2], num_heads, k_cache.shape[3]))


_op = KernelOp(
    "rope_append",
    "(Tensor qkv, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor position, Tensor freqs, "
    "int num_heads, int num_kv_heads, bool interleaved, Tensor? q_norm, Tensor? k_norm, "
    "float eps) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")},
)
