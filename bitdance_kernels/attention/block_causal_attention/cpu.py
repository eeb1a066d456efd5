"""block_causal_attention of short sequences in C++: csrc/cpu/block_causal_attention.

Longer ones are left to PyTorch's fused kernel, which the reference calls: its matrix products are
faster, and the hundred microseconds that it takes to begin do not matter there. Half precision is
left to it too, with products of halves, for which processors have instructions; the reference has
those of float32, which are more exact.
"""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.attention._shared import intervals
from bitdance_kernels.attention._shared.heads import unit_channels
from bitdance_kernels.attention.block_causal_attention import _fused_cpu, reference

_MAX_CHANNELS = 128  # kDecodeMaxChannels of csrc/cpu/block_decode_attention
_MAX_TOKENS = 128
_HALVES = (torch.float16, torch.bfloat16)


def unsupported(q: torch.Tensor, k: torch.Tensor, *_: object) -> str | None:
    if q.dtype in _HALVES:
        return None
    reason = native.cpu_unsupported("block_causal_attention", q)
    if reason is not None:
        return reason
    if q.dtype != torch.float32:
        return f"it does not handle {q.dtype}"
    if q.shape[3] > _MAX_CHANNELS:
        return f"it takes heads of at most {_MAX_CHANNELS} channels, got D = {q.shape[3]}"
    if max(q.shape[1], k.shape[1]) > _MAX_TOKENS:
        return f"it takes at most {_MAX_TOKENS} tokens, got T, Tk = {q.shape[1]}, {k.shape[1]}"
    return None


def run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    if q.dtype in _HALVES:
        out, lse = _fused_cpu.forward(q, k, v, start, end, scale, dtype=q.dtype)
        known = intervals.is_finite(out)  # it does not know that hidden keys must not be seen
        return (out, lse) if known else reference.forward(q, k, v, start, end, scale)
    B, T, H, D = q.shape
    out, lse = q.new_empty(B, T, H, D), q.new_empty(B, H, T)
    q, k, v = map(unit_channels, (q, k, v))
    start, end = start.contiguous(), end.contiguous()
    native.cpu.block_causal_attention(
        q,
        k,
        v,
        start,
        end,
        T if start.dim() == 2 else 0,
        out,
        lse,
        B,
        T,
        H,
        k.shape[2],
        D,
        k.shape[1],
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        scale,
        torch.get_num_threads(),
    )
    return out, lse


native_functions_backward = ("block_causal_attention",)  # it runs its own forward pass


def unsupported_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, *_: object
) -> str | None:
    return unsupported(q, k)


def run_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # PyTorch's fused kernel: its start-up time is small in a training step. Its rounding errors
    # cancel those of its own forward pass; with another log-sum-exp the error doubles. Halves have
    # passed through it, and their errors are larger.
    if q.dtype not in _HALVES:
        out, lse = reference.run(q, k, v, start, end, scale)
    return reference.run_backward(grad, q, k, v, out, lse, start, end, scale)
