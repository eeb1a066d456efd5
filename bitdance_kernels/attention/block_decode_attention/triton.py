"""block_decode_attention in Triton: split over the cache, then a second kernel sums the parts.

The P tokens and the query heads of one key-value head are the rows of a matrix: each tile of the
cache is read once for all of them. The grid depends on shapes alone; how many tiles a split takes
is computed on the device from the length of its row, so that all splits have work at any length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bitdance_kernels._shared import triton_support
from bitdance_kernels.attention._shared.heads import unit_channels
from bitdance_kernels.attention.block_decode_attention.config import split_count

_LOG2_E = 1.4426950408889634
_MAX_CHANNELS = 128
_MAX_ROWS = 64  # query rows of a program
_KEYS = {2: 64, 4: 32}  # of a tile, by bytes of a value


@triton.jit
def _share(length, splits, KEYS: tl.constexpr):
    """Keys that each split of a row takes: whole tiles, 0 for an empty row."""
    return tl.cdiv(tl.cdiv(length, KEYS), splits) * KEYS


@triton.jit
def _block_decode_attend_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, out_ptr, sums_ptr, top_ptr, total_ptr, scale, P, Tmax, Hkv,
    row_tiles, splits, q_batch_stride, q_token_stride, q_head_stride,
    k_batch_stride, k_token_stride, k_head_stride, v_batch_stride, v_token_stride, v_head_stride,
    GROUP: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, SPLIT: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One split of the cache of one key-value head for ROWS query rows.

    With one split the result goes to `out_ptr`; else the sums relative to the largest score, that
    score, and the sum of the weights go to [B, P, H, splits, ...].
    """
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    program = tl.program_id(0).to(tl.int64)
    row_tile = program % row_tiles
    split = program // row_tiles % splits
    kv_head = program // row_tiles // splits % Hkv
    batch = program // row_tiles // splits // Hkv

    length = tl.minimum(tl.maximum(tl.load(lengths_ptr + batch), 0), Tmax)
    share = _share(length, splits, KEYS)
    first = split.to(tl.int32) * share
    last = tl.minimum(first + share, length)

    row = row_tile * ROWS + tl.arange(0, ROWS)  # p group + g
    real_row = row < P * GROUP
    token, head = row // GROUP, kv_head * GROUP + row % GROUP
    channel = tl.arange(0, CHANNELS)
    real_channel = channel < D
    real = real_row[:, None] & real_channel[None, :]
    out_row = (batch * P + token) * (Hkv * GROUP) + head
    if SPLIT and first >= last:
        return  # the combining kernel skips this part
    at = batch * q_batch_stride + token * q_token_stride + head * q_head_stride
    q = tl.load(q_ptr + (at[:, None] + channel[None, :]), mask=real, other=0.0)

    k_ptr += batch * k_batch_stride + kv_head * k_head_stride
    v_ptr += batch * v_batch_stride + kv_head * v_head_stride
    sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    for start in range(first, last, KEYS):
        key = start + tl.arange(0, KEYS)
        filled = key < last
        cached = key.to(tl.int64)[:, None]
        # Cache rows past the length may hold NaN, which a weight of 0 does not remove.
        inside = filled[:, None] & real_channel[None, :]
        k = tl.load(k_ptr + (cached * k_token_stride + channel[None, :]), mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(filled[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        # A row whose scores are all -inf so far has weights 0, not exp(-inf + inf).
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(top - shift)
        top = higher
        total = total * fade + tl.sum(weights, axis=1)
        v = tl.load(v_ptr + (cached * v_token_stride + channel[None, :]), mask=inside, other=0.0)
        sums = tl.dot(weights.to(v.dtype), v, sums * fade[:, None], input_precision="ieee")

    if not SPLIT:
        out = sums / tl.where(length > 0, total, 1.0)[:, None]
        at = out_row[:, None] * D + channel[None, :]
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=real)
    else:
        part = out_row * splits + split
        tl.store(sums_ptr + (part[:, None] * D + channel[None, :]), sums, mask=real)
        tl.store(top_ptr + part, top, mask=real_row)
        tl.store(total_ptr + part, total, mask=real_row)


@triton.jit
def _block_decode_combine_kernel(
    lengths_ptr, sums_ptr, top_ptr, total_ptr, out_ptr, Tmax, rows, splits,
    D: tl.constexpr, CHANNELS: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Combine the parts of one query and head, of `rows` per batch row, in one softmax."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    out_row = tl.program_id(0).to(tl.int64)
    length = tl.minimum(tl.maximum(tl.load(lengths_ptr + out_row // rows), 0), Tmax)
    split = tl.arange(0, PARTS)  # the power of two from `splits` on
    has_part = split * _share(length, splits, KEYS) < length  # others have written nothing
    has_part &= split < splits
    part = out_row * splits + split
    top = tl.load(top_ptr + part, mask=has_part, other=float("-inf"))
    highest = tl.max(top, axis=0)
    weights = tl.exp2(top - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(weights * tl.load(total_ptr + part, mask=has_part, other=0.0), axis=0)
    channel = tl.arange(0, CHANNELS)
    inside = has_part[:, None] & (channel < D)[None, :]
    at = part[:, None] * D + channel[None, :]
    sums = tl.load(sums_ptr + at, mask=inside, other=0.0)
    out = tl.sum(weights[:, None] * sums, axis=0) / tl.where(length > 0, total, 1.0)
    at = out_row * D + channel
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=channel < D)


def unsupported(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor, *_: object
) -> str | None:
    if q.shape[3] > _MAX_CHANNELS:
        return f"it holds heads of at most {_MAX_CHANNELS} channels, got D = {q.shape[3]}"
    return triton_support.unsupported(q, k_cache, v_cache, lengths)


def run(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    out = q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    q, k_cache, v_cache = (unit_channels(x) for x in (q, k_cache, v_cache))
    lengths = lengths.contiguous()
    B, P, H, D = q.shape
    Tmax, Hkv = k_cache.shape[1:3]
    group = H // Hkv
    channels = max(16, triton.next_power_of_2(D))
    keys = max(16, _KEYS[q.element_size()] * 64 // max(64, channels))
    rows = max(16, min(_MAX_ROWS, triton.next_power_of_2(P * group)))
    if q.dtype == torch.float32:
        rows = 16  # products in full float32 are sums in registers
    row_tiles = triton.cdiv(P * group, rows)
    programs = B * Hkv * row_tiles
    splits = split_count(q.device, programs, rows, Tmax, keys)
    part = (B, P, H, splits if splits > 1 else 0)
    sums = torch.empty((*part, D), dtype=torch.float32, device=q.device)
    top, total = torch.empty((2, *part), dtype=torch.float32, device=q.device)
    with triton_support.on_device(q):
        _block_decode_attend_kernel[(programs * splits,)](
            q, k_cache, v_cache, lengths, out, sums, top, total, scale * _LOG2_E, P, Tmax, Hkv,
            row_tiles, splits, *q.stride()[:3], *k_cache.stride()[:3], *v_cache.stride()[:3],
            GROUP=group, D=D, CHANNELS=channels, ROWS=rows, KEYS=keys, SPLIT=splits > 1,
            num_warps=4, num_stages=3, **triton_support.overlapping(out.device),
        )  # fmt: skip
        if splits > 1:
            _block_decode_combine_kernel[(B * P * H,)](
                lengths, sums, top, total, out, Tmax, P * H, splits, D=D, CHANNELS=channels,
                KEYS=keys, PARTS=triton.next_power_of_2(splits), num_warps=2,
                **triton_support.overlapping(out.device),
            )  # fmt: skip
    return out
