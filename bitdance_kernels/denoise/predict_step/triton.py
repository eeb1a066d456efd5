"""predict_step in Triton: a program takes some tokens of the state and a slice of the channels.

What comes before the next stream is little work for few tokens, and each program of their slices
repeats it: so the whole is one launch, and no program waits for another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.philox_triton import four_normals
from bitdance_kernels._shared.rows import as_rows
from bitdance_kernels.denoise._shared.product_config import MULTIPROCESSORS
from bitdance_kernels.denoise._shared.product_triton import (
    load_tile,
    modulated,
    moments,
    store_tile,
)

_MAX_BITS = 128
# Untuned until a card has decided: tokens of a tile, few and many; channels of a tile, fewer for
# float32 and odd widths, which take more registers; and slices at most, as each computes the
# predictions anew.
_FEW_TOKENS, _MANY_TOKENS, _MANY = 16, 32, 1024
_DEPTH, _LESS_DEPTH = 64, 32
_MAX_SLICES = 8


@triton.jit
def _predict(
    h_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, x0_ptr, row, rows, channels, bits,
    h_stride, scale_stride, shift_stride, eps, stored,
    SQUASH: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Predictions [ROWS, BITS] as rounded, float32; those of rows under `stored` are stored."""
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    bit = tl.arange(0, BITS).to(tl.int64)
    mean, rstd = moments(h_ptr, row, rows, h_stride, channels, eps, ROWS, DEPTH)
    x0 = tl.zeros([ROWS, BITS], tl.float32)
    for k in range(0, channels, DEPTH):
        channel = k + tl.arange(0, DEPTH).to(tl.int64)
        inside = (row < rows)[:, None] & (channel < channels)[None, :]
        n = modulated(
            h_ptr, scale_ptr, shift_ptr, None, None, row, h_stride, scale_stride, shift_stride,
            channel, channels, inside, mean, rstd, False, False,
        )  # fmt: skip
        inside = (bit < bits)[:, None] & (channel < channels)[None, :]
        weight = load_tile(weight_ptr, bit, channels, channel, inside)
        x0 = tl.dot(n.to(dtype), tl.trans(weight), x0, input_precision="ieee")
    bias = tl.load(bias_ptr + bit, mask=bit < bits, other=0.0)
    x0 = (x0 + bias.to(tl.float32)[None, :]).to(dtype).to(tl.float32)
    if SQUASH:
        x0 = (2.0 * tl.sigmoid(x0) - 1.0).to(dtype).to(tl.float32)
    inside = (row < stored)[:, None] & (bit < bits)[None, :]
    store_tile(x0_ptr, row, bits, bit, inside, x0)
    return x0


@triton.jit
def _predict_step_kernel(
    h_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, x_ptr, table_ptr, step_ptr, in_weight_ptr,
    in_bias_ptr, time_ptr, cond_ptr, cfg_ptr, noise_ptr, keys_ptr, x0_ptr, state_ptr, stream_ptr,
    y_ptr, tokens, patch, channels, bits, steps, h_stride, scale_stride, shift_stride, cond_stride,
    eps, trips,
    HALVES: tl.constexpr, DRAWN: tl.constexpr, SQUASH: tl.constexpr, TIMED: tl.constexpr,
    ROWS: tl.constexpr, BITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    # All slices have the same predictions and the same state; the first stores them.
    stored = tl.where(tl.program_id(1) == 0, tokens, 0)
    bit = tl.arange(0, BITS).to(tl.int64)
    x0 = _predict(
        h_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, x0_ptr, token, tokens, channels, bits,
        h_stride, scale_stride, shift_stride, eps, stored, SQUASH, ROWS, BITS, DEPTH,
    )  # fmt: skip
    if HALVES == 2:
        # The unconditional half; tokens past the end must not come to lie in it.
        of_other = tl.where(token < tokens, token + tokens, 2 * tokens)
        other = _predict(
            h_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, x0_ptr, of_other, 2 * tokens,
            channels, bits, h_stride, scale_stride, shift_stride, eps, 2 * stored,
            SQUASH, ROWS, BITS, DEPTH,
        )  # fmt: skip
        x0 = other + tl.load(cfg_ptr) * (x0 - other)

    step = tl.load(step_ptr).to(tl.int64)
    a = tl.load(table_ptr + step * 3)
    b = tl.load(table_ptr + (step * 3 + 1))
    s = tl.load(table_ptr + (step * 3 + 2))
    inside = (token < tokens)[:, None] & (bit < bits)[None, :]
    x = load_tile(x_ptr, token, bits, bit, inside)
    if DRAWN:
        # A lane makes four bits of a token; its counter is their place in the patch.
        lane = tl.arange(0, ROWS * (BITS // 4))
        of_token = tl.program_id(0).to(tl.int64) * ROWS + lane // (BITS // 4)
        # Lanes past the end read the key of the first row, which exists.
        of_token = tl.where(of_token < tokens, of_token, 0)
        block = of_token % patch * (bits // 4) + lane % (BITS // 4)
        four = four_normals(keys_ptr, of_token // patch, block, step + 1, ROWS * (BITS // 4))
        noise = tl.reshape(four, (ROWS, BITS))
    else:
        noise = load_tile(noise_ptr, token, bits, bit, inside)
    state = tl.fma(s, noise, tl.fma(b, x0, a * x))
    first = (token < stored)[:, None] & (bit < bits)[None, :]
    store_tile(state_ptr, token, bits, bit, first, state)

    dtype: tl.constexpr = in_weight_ptr.dtype.element_ty
    state = tl.where(inside, state, 0.0).to(dtype)
    following = tl.minimum(step + 1, steps - 1)
    for trip in range(trips):
        channel = (tl.program_id(1) * trips + trip).to(tl.int64) * DEPTH + tl.arange(0, DEPTH)
        of_layer = (channel < channels)[:, None] & (bit < bits)[None, :]
        weight = load_tile(in_weight_ptr, channel, bits, bit, of_layer)
        stream = tl.dot(state, tl.trans(weight), input_precision="ieee")
        bias = tl.load(in_bias_ptr + channel, mask=channel < channels, other=0.0)
        stream += bias.to(tl.float32)[None, :]
        of_stream = (token < tokens)[:, None] & (channel < channels)[None, :]
        if TIMED:
            at = following * channels + channel
            time = tl.load(time_ptr + at, mask=channel < channels, other=0.0).to(tl.float32)
        for half in tl.static_range(HALVES):
            row = token + half * tokens
            store_tile(stream_ptr, row, channels, channel, of_stream, stream)
            if TIMED:
                y = load_tile(cond_ptr, row, cond_stride, channel, of_stream).to(tl.float32)
                y += time[None, :]
                store_tile(y_ptr, row, channels, channel, of_stream, y * tl.sigmoid(y))


def unsupported(
    h: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    time: torch.Tensor | None,
    cond: torch.Tensor | None,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    *_: object,
) -> str | None:
    reason = triton_support.unsupported(h, scale, shift, x)
    bits = x.shape[-1]
    if reason is None and bits > _MAX_BITS:
        reason = f"it handles up to {_MAX_BITS} bits a token, got {bits}"
    if reason is None and keys is not None and bits % 4 != 0:
        reason = f"it draws noise for four bits at a time, got {bits} a token"
    return reason


def run(
    h: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    time: torch.Tensor | None,
    cond: torch.Tensor | None,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    squash: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    channels, bits = h.shape[-1], x.shape[-1]
    x0 = h.new_empty((*h.shape[:-1], bits))
    state, stream = x.new_empty(x.shape), h.new_empty(h.shape)
    y = h.new_empty(0 if time is None else h.shape)
    if x.numel() == 0:
        return x0, state, stream, y
    tokens = x.numel() // bits
    (h, _, h_stride), (scale, _, scale_stride) = as_rows(h), as_rows(scale)
    (shift, _, shift_stride) = as_rows(shift)
    cond, _, cond_stride = (None, 0, 0) if cond is None else as_rows(cond)
    rows = _MANY_TOKENS if tokens >= _MANY and h.dtype.itemsize == 2 else _FEW_TOKENS
    narrow = h.dtype.itemsize == 2 and channels % 8 == 0 and bits % 8 == 0
    depth = _DEPTH if narrow else _LESS_DEPTH
    blocks, tiles = triton.cdiv(tokens, rows), triton.cdiv(channels, depth)
    slices = min(tiles, max(1, MULTIPROCESSORS // blocks), _MAX_SLICES)
    trips = triton.cdiv(tiles, slices)
    with triton_support.on_device(h):
        _predict_step_kernel[(blocks, triton.cdiv(tiles, trips))](
            h, scale, shift, weight.contiguous(), bias.contiguous(), x.contiguous(),
            table.contiguous(), step, in_weight.contiguous(), in_bias.contiguous(),
            None if time is None else time.contiguous(), cond,
            None if cfg is None else cfg.to(torch.float32),
            None if noise is None else noise.contiguous(),
            None if keys is None else keys.contiguous(), x0, state, stream, y, tokens,
            x.shape[1:-1].numel(), channels, bits, table.shape[0], h_stride, scale_stride,
            shift_stride, cond_stride, eps, trips,
            HALVES=1 if cfg is None else 2, DRAWN=keys is not None, SQUASH=squash,
            TIMED=time is not None, ROWS=rows, BITS=max(16, triton.next_power_of_2(bits)),
            DEPTH=depth,
            # Guidance rounds after each operation: a fused multiply-add would change signs.
            enable_fp_fusion=False,
        )  # fmt: skip
    return x0, state, stream, y
