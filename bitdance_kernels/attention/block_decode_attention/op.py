"""block_decode_attention: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels.attention._shared import heads

__all__ = ["block_decode_attention"]


def block_decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Attention of the P new tokens of each row to the filled part of its cache.

    ``out_i = sum_j softmax_j(scale * q_i . k_j) v_j`` over 0 <= j < lengths[b], for all P queries
    alike: keys and values of the new tokens are in the cache already (``rope_append``), and the
    tokens of a patch see each other. Query head h reads key-value head h // (H / Hkv).

    Args:
        q: [B, P, H, D], float32, float16, bfloat16 or float64; any strides.
        k_cache: [B, Tmax, Hkv, D] of the dtype of `q`, H a multiple of Hkv. Rows from lengths[b] on
            have no influence, be they NaN.
        v_cache: as `k_cache`.
        lengths: int32 [B], on the device of `q`: rows filled. Less than 0 means 0 (which gives 0),
            more than Tmax means Tmax.
        scale: factor on the scores; 1 / sqrt(D) by default.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [B, P, H, D] of the dtype of `q`, contiguous.

    Raises:
        TypeError: dtypes other than the above.
        ValueError: shapes or devices that do not fit together.
        RuntimeError: an argument requires grad; ``block_causal_attention`` has a gradient.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Scores, softmax and sums in float32 (float64 for float64), one rounding at the end; on a CPU
        with AMX the weights of bfloat16 are rounded to it where a head has several rows. On a GPU
        the host does not wait for `lengths`. Autocast casts `q` and both caches to its dtype.

    Backends:
        reference; C++ on the CPU (D up to 128, but not float64); triton (D up to 128); cuda (tensor
        cores from sm_80 on; float16 and bfloat16, D a multiple of 8 up to 128; copies `q` and
        caches whose heads do not lie at multiples of 16 bytes). The GPU's two split a cache of more
        than 384 keys among as many programs as fill the card, chosen from shapes alone, so that a
        CUDA graph serves every length. A second kernel combines the parts, in a fixed order; on
        cards with clusters cuda does so in the same launch, for caches of up to 4096 keys.

    Example:
        >>> import torch
        >>> k_cache, v_cache = torch.randn(2, 1, 32, 2, 16).unbind()
        >>> lengths = torch.tensor([20], dtype=torch.int32)
        >>> block_decode_attention(torch.randn(1, 4, 2, 16), k_cache, v_cache, lengths).shape
        torch.Size([1, 4, 2, 16])
    """
    scale = heads.scale_or_default("block_decode_attention", scale, q)
    return _op.call(q, k_cache, v_cache, lengths, scale, backend)


def _check(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> None:
    op = "block_decode_attention"
    heads.check_heads(op, q, "k_cache", k_cache, "v_cache", v_cache, "P")
    checks.dtype(op, "lengths", lengths, (torch.int32,))
    checks.shape(op, "lengths", lengths, (q.shape[0],), "[B]")
    checks.same_device(op, "q", q, lengths=lengths)


def _fake(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    return q.new_empty(q.shape)


_op = KernelOp(
    "block_decode_attention",
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, float scale) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")},
    reads_values=True,
    autocast=("q", "k_cache", "v_cache"),
)
