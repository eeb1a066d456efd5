"""rope_append in Triton: a program handles some query, key or value heads of a new token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels.attention._shared.heads import unit_channels
from bitdance_kernels.attention._shared.rotation_triton import (
    head_tile,
    load_pairs,
    load_turn,
    rotate,
    store_pairs,
)


@triton.jit
def _turn_heads(
    x_ptr, y_ptr, norm_ptr, first, head, inside, y_head_stride, cos, sin, eps, NORM: tl.constexpr,
    D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Heads `head` of `y_ptr`, which are heads `first + head` of `x_ptr`."""
    a, b = load_pairs(x_ptr, first + head, inside, D, D, HALF, INTERLEAVED)
    if NORM:
        only = tl.zeros([1], tl.int64)  # the weights of all heads: a table of one row
        weight_a, weight_b = load_pairs(norm_ptr, only, only == 0, D, D, HALF, INTERLEAVED)
        factor = tl.rsqrt(tl.sum(a * a + b * b, axis=1) / D + eps)[:, None]
        a, b = a * factor * weight_a, b * factor * weight_b
    a, b = rotate(a, b, cos, sin)
    store_pairs(y_ptr, a, b, head, inside, y_head_stride, D, HALF, INTERLEAVED)


@triton.jit
def _rope_append_kernel(
    qkv_ptr, q_ptr, k_cache_ptr, v_cache_ptr, position_ptr, freqs_ptr, q_norm_ptr, k_norm_ptr, eps,
    P, H, Hkv, qkv_batch_stride, qkv_token_stride, k_batch_stride, k_token_stride, k_head_stride,
    v_batch_stride, v_token_stride, v_head_stride,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # b P + p
    batch = row // P
    token = tl.load(position_ptr + batch).to(tl.int64) + row % P
    qkv_ptr += batch * qkv_batch_stride + row % P * qkv_token_stride
    k_cache_ptr += batch * k_batch_stride + token * k_token_stride
    v_cache_ptr += batch * v_batch_stride + token * v_token_stride

    # A program's heads are all queries, all keys or all values.
    tile = tl.program_id(1).to(tl.int64)
    q_tiles, kv_tiles = tl.cdiv(H, HEADS), tl.cdiv(Hkv, HEADS)
    head = tl.arange(0, HEADS).to(tl.int64)
    if tile < q_tiles:
        head += tile * HEADS
        cos, sin = load_turn(freqs_ptr, token, D, HALF)
        _turn_heads(
            qkv_ptr, q_ptr + row * H * D, q_norm_ptr, 0, head, head < H, D, cos, sin, eps,
            Q_NORM, D, HALF, INTERLEAVED,
        )  # fmt: skip
    elif tile < q_tiles + kv_tiles:
        head += (tile - q_tiles) * HEADS
        cos, sin = load_turn(freqs_ptr, token, D, HALF)
        _turn_heads(
            qkv_ptr, k_cache_ptr, k_norm_ptr, H, head, head < Hkv, k_head_stride, cos, sin,
            eps, K_NORM, D, HALF, INTERLEAVED,
        )  # fmt: skip
    else:
        head += (tile - q_tiles - kv_tiles) * HEADS
        channel = tl.arange(0, 2 * HALF)[None, :]
        real = (head < Hkv)[:, None] & (channel < D)
        at = (H + Hkv + head)[:, None] * D + channel
        v = tl.load(qkv_ptr + at, mask=real, other=0.0)
        tl.store(v_cache_ptr + (head[:, None] * v_head_stride + channel), v, mask=real)


def unsupported(
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
) -> str | None:
    if k_cache.stride(3) != 1 or v_cache.stride(3) != 1:
        return "it writes caches whose channels are adjacent"
    given = [x for x in (qkv, freqs, q_norm, k_norm) if x is not None]
    return triton_support.unsupported(*given)


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
    D = k_cache.shape[3]
    q = qkv.new_empty((B, P, num_heads, D))
    if q.numel() == 0:
        return q
    qkv = unit_channels(qkv)
    heads, half, warps = head_tile(num_kv_heads, D)
    tiles = triton.cdiv(num_heads, heads) + 2 * triton.cdiv(num_kv_heads, heads)
    with triton_support.on_device(qkv):
        _rope_append_kernel[(B * P, tiles)](
            qkv, q, k_cache, v_cache, position.contiguous(), freqs.contiguous(),
            None if q_norm is None else q_norm.contiguous(),
            None if k_norm is None else k_norm.contiguous(),
            eps, P, num_heads, num_kv_heads, *qkv.stride()[:2], *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            Q_NORM=q_norm is not None, K_NORM=k_norm is not None, D=D, HALF=half, HEADS=heads,
            INTERLEAVED=interleaved, num_warps=warps,
        )  # fmt: skip
    return q
