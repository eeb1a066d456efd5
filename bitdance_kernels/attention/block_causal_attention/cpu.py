"""block_causal_attention in C++: csrc/cpu/block_causal_attention."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.attention._shared.heads import unit_channels

_MAX_CHANNELS = 128  # kMaxChannels of csrc/cpu/common/attention_tiles.h
_MAX_TOKENS = 4096
_PAD, _STRIP, _STRIPS = 16, 16, 4  # of csrc/cpu/block_causal_attention


def unsupported(q: torch.Tensor, k: torch.Tensor, *_: object) -> str | None:
    return _unsupported("block_causal_attention", q, k)


def _unsupported(function: str, q: torch.Tensor, k: torch.Tensor) -> str | None:
    reason = native.cpu_unsupported(function, q)
    if reason is not None:
        return reason
    if q.dtype not in native.DTYPE_CODES:
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
    B, T, H, D = q.shape
    Tk, Hkv = k.shape[1:3]
    keys, width = _padded(Tk), _padded(D)
    threads = torch.get_num_threads()
    out, lse = q.new_empty(B, T, H, D), q.new_empty(B, H, T, dtype=torch.float32)
    size = (3 * keys + 2 * T) * width + _STRIP * keys
    start, end = start.contiguous(), end.contiguous()
    native.cpu.block_causal_attention(
        *map(unit_channels, (q, k, v)),
        start,
        end,
        T if start.dim() == 2 else 0,
        out,
        lse,
        B,
        T,
        H,
        Hkv,
        D,
        Tk,
        scale,
        q.new_empty(threads * size, dtype=torch.float32),
        size,
        threads,
    )
    return out, lse


native_functions_backward = ("block_causal_attention_backward",)


def unsupported_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, *_: object
) -> str | None:
    return _unsupported("block_causal_attention_backward", q, k)


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
    B, T, H, D = q.shape
    Tk, Hkv = k.shape[1:3]
    keys, width = _padded(Tk), _padded(D)
    threads = torch.get_num_threads()
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    size = (6 * keys + 3 * T) * width + 2 * _STRIPS * _STRIP * keys
    start, end = start.contiguous(), end.contiguous()
    native.cpu.block_causal_attention_backward(
        *map(unit_channels, (grad, q, k, v)),
        lse.contiguous(),
        start,
        end,
        T if start.dim() == 2 else 0,
        dq,
        dk,
        dv,
        B,
        T,
        H,
        Hkv,
        D,
        Tk,
        scale,
        q.new_empty(threads * size, dtype=torch.float32),
        size,
        threads,
    )
    return dq, dk, dv


def _padded(n: int) -> int:
    return -(-n // _PAD) * _PAD
