"""rope in Triton: a program rotates some heads of one token, forward or back."""

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
def _rope_kernel(
    x_ptr, y_ptr, freqs_ptr, T, H, x_batch_stride, x_token_stride, x_head_stride,
    D: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # b T + t
    token = row % T
    head = tl.program_id(1).to(tl.int64) * HEADS + tl.arange(0, HEADS)
    inside = head < H
    cos, sin = load_turn(freqs_ptr, token, D, HALF)
    if BACK:  # a rotation is orthogonal: its transpose rotates by the negative angle
        sin = -sin
    x_ptr += row // T * x_batch_stride + token * x_token_stride
    a, b = load_pairs(x_ptr, head, inside, x_head_stride, D, HALF, INTERLEAVED)
    a, b = rotate(a, b, cos, sin)
    store_pairs(y_ptr + row * H * D, a, b, head, inside, D, D, HALF, INTERLEAVED)


def unsupported(x: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> str | None:
    return triton_support.unsupported(x, freqs)


def run(x: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> torch.Tensor:
    return _turn(x, freqs, interleaved, back=False)


def unsupported_backward(grad: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> str | None:
    return unsupported(grad, freqs, interleaved)


def run_backward(grad: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> torch.Tensor:
    return _turn(grad, freqs, interleaved, back=True)


def _turn(x: torch.Tensor, freqs: torch.Tensor, interleaved: bool, back: bool) -> torch.Tensor:
    y = x.new_empty(x.shape)
    if y.numel() == 0:
        return y
    x = unit_channels(x)
    B, T, H, D = x.shape
    heads, half, warps = head_tile(H, D)
    with triton_support.on_device(x):
        _rope_kernel[(B * T, triton.cdiv(H, heads))](
            x, y, freqs.contiguous(), T, H, x.stride(0), x.stride(1), x.stride(2),
            D=D, HALF=half, HEADS=heads, INTERLEAVED=interleaved, BACK=back, num_warps=warps,
        )  # fmt: skip
    return y
