"""block_causal_attention: the public function and the contracts of the op and its backward."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels.attention._shared import heads
from bitdance_kernels.attention.ranges import Ranges

__all__ = ["block_causal_attention"]


def block_causal_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ranges: Ranges,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Attention in which every query sees one interval of keys.

    ``out_i = sum_j softmax_j(scale * q_i . k_j) v_j`` over start_i <= j < end_i. With
    ``block_causal_ranges`` this is next-patch attention, with ``packed_document_ranges`` training
    on packed sequences; causal, prefix and full attention are ranges too. Query head h reads
    key-value head h // (H / Hkv). Differentiable in q, k and v.

    A query that sees nothing gives 0, and takes part in no gradient. A key and value has no
    influence on a query that does not see it, be it NaN or infinite (on the triton backend: if no
    query of the same tile sees it); if none sees it, its gradient is 0.

    Args:
        q: [B, T, H, D], float32, float16, bfloat16 or float64; any strides.
        k: [B, Tk, Hkv, D] of the dtype of `q`, H a multiple of Hkv.
        v: [B, Tk, Hkv, D] of the dtype of `q`.
        ranges: ``Ranges`` of T queries: [T], or [B, T] to differ between the rows of the batch.
            An end beyond Tk means Tk.
        scale: factor on the scores; 1 / sqrt(D) by default.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [B, T, H, D] of the dtype of `q`, contiguous.

    Raises:
        TypeError: dtypes other than the above; `ranges` are no ``Ranges``.
        ValueError: shapes or devices that do not fit together.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Scores, softmax and sums in float32 (float64 for float64), one rounding at the end. The
        backward pass recomputes the weights from the log-sum-exp of each query and is
        deterministic. The triton backend (D up to 128, scale over 0, no float64) rounds weights
        and their gradients to the dtype of `q` before it multiplies, as FlashAttention does; so
        does the cpu backend where the processor multiplies tiles of bfloat16. In float32, up to
        D = 64, triton's products are six products of three bfloat16 parts of each value, where the
        card has units for them. Autocast casts `q`, `k` and `v` to its dtype.

    Backends:
        reference, on the CPU by PyTorch's fused kernel in float32; cpu in C++, for D up to 128 and
        up to 4096 tokens, no float64; triton.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 9, 4, 16).unbind()
        >>> block_causal_attention(q, k, v, block_causal_ranges(1, 2, 4)).shape
        torch.Size([2, 9, 4, 16])
    """
    if not isinstance(ranges, Ranges):
        kind = type(ranges).__name__
        raise TypeError(f"block_causal_attention: ranges must be Ranges, got {kind}")
    scale = heads.scale_or_default("block_causal_attention", scale, q)
    out, _ = _op.call(q, k, v, ranges.start, ranges.end, scale, backend)
    return out


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> None:
    _check_as("block_causal_attention", q, k, v, start, end)


def _check_as(
    op: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
) -> None:
    heads.check_heads(op, q, "k", k, "v", v, "T")
    B, T = q.shape[:2]
    for name, tensor in (("ranges.start", start), ("ranges.end", end)):
        checks.dtype(op, name, tensor, (torch.int32,))
        checks.rank(op, name, tensor, 1, 2)
        checks.same_device(op, "q", q, **{name: tensor})
        if tensor.dim() == 1:
            checks.shape(op, name, tensor, (T,), "[T]")
        else:
            checks.shape(op, name, tensor, (B, T), "[B, T]")
    checks.shape(op, "ranges.end", end, start.shape)


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    B, T, H, _ = q.shape
    statistics = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((B, H, T), dtype=statistics)


def _check_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> None:
    op = "block_causal_attention_backward"
    _check_as(op, q, k, v, start, end)
    for name, tensor in (("grad", grad), ("out", out)):
        checks.dtype(op, name, tensor, (q.dtype,))
        checks.shape(op, name, tensor, q.shape, "[B, T, H, D]")
    B, T, H, _ = q.shape
    checks.shape(op, "lse", lse, (B, H, T), "[B, H, T]")
    checks.same_device(op, "q", q, grad=grad, out=out, lse=lse)


def _fake_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, start, end, ctx.scale, ctx.backend = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, start, end)


def _backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    q, k, v, out, lse, start, end = ctx.saved_tensors
    dq, dk, dv = _op_backward.call(grad, q, k, v, out, lse, start, end, ctx.scale, ctx.backend)
    return dq, dk, dv, None, None, None, None


_ORDER = {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")}

# The second output, log(sum_j exp(scale * q_i . k_j)) as [B, H, T], serves the backward pass; it is
# -inf where a query sees nothing.
_op = KernelOp(
    "block_causal_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor start, Tensor end, float scale) -> (Tensor, Tensor)",
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
    backward=_backward,
    setup_context=_setup_context,
    reads_values=True,
    called_arguments={"start": "ranges.start", "end": "ranges.end"},
    autocast=("q", "k", "v"),
)

_op_backward = KernelOp(
    "block_causal_attention_backward",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor start, Tensor end,"
    " float scale) -> (Tensor, Tensor, Tensor)",
    package=__package__,
    check=_check_backward,
    fake=_fake_backward,
    order=_ORDER,
    entry="_backward",
    is_backward=True,
    reads_values=True,
    called_arguments={"start": "ranges.start", "end": "ranges.end"},
)
