"""Heads of one token in Triton, as pairs of channels: shared by the rotating kernels.

A tile of heads is two tensors [heads, HALF], the first and the second channel of every pair, with
HALF the power of two from D / 2 on. Interleaved pairs are read as whole heads and split in
registers, so that both orders load and store runs of adjacent channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Values per program: it rotates as many heads of a token as that holds.
_VALUES = 2048


@triton.jit
def load_pairs(
    x_ptr: tl.tensor, head: tl.tensor, inside: tl.tensor, head_stride: tl.tensor, D: tl.constexpr,
    HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Both channels of the pairs of heads `head` [heads] at `x_ptr`, in float32."""
    if INTERLEAVED:
        channel = tl.arange(0, 2 * HALF)[None, :]
        real = inside[:, None] & (channel < D)
        x = tl.load(x_ptr + (head[:, None] * head_stride + channel), mask=real, other=0.0)
        a, b = tl.split(tl.reshape(x, [x.shape[0], HALF, 2]))
    else:
        pair = tl.arange(0, HALF)[None, :]
        real = inside[:, None] & (pair < D // 2)
        at = head[:, None] * head_stride + pair
        a = tl.load(x_ptr + at, mask=real, other=0.0)
        b = tl.load(x_ptr + (at + D // 2), mask=real, other=0.0)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def store_pairs(
    y_ptr: tl.tensor, a: tl.tensor, b: tl.tensor, head: tl.tensor, inside: tl.tensor,
    head_stride: tl.tensor, D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
) -> None:  # fmt: skip
    """The inverse of `load_pairs`; rounds to the dtype of `y_ptr`."""
    a, b = a.to(y_ptr.dtype.element_ty), b.to(y_ptr.dtype.element_ty)
    if INTERLEAVED:
        channel = tl.arange(0, 2 * HALF)[None, :]
        real = inside[:, None] & (channel < D)
        y = tl.reshape(tl.join(a, b), [a.shape[0], 2 * HALF])
        tl.store(y_ptr + (head[:, None] * head_stride + channel), y, mask=real)
    else:
        pair = tl.arange(0, HALF)[None, :]
        real = inside[:, None] & (pair < D // 2)
        at = head[:, None] * head_stride + pair
        tl.store(y_ptr + at, a, mask=real)
        tl.store(y_ptr + (at + D // 2), b, mask=real)


@triton.jit
def load_turn(
    freqs_ptr: tl.tensor, token: tl.tensor, D: tl.constexpr, HALF: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Cosine and sine [1, HALF] of row `token` of a contiguous table, in float32."""
    at = tl.arange(0, 2 * HALF)
    row = tl.load(freqs_ptr + (token * D + at), mask=at < D, other=0.0).to(tl.float32)
    cos, sin = tl.split(tl.reshape(row, [HALF, 2]))
    return cos[None, :], sin[None, :]


@triton.jit
def rotate(
    a: tl.tensor, b: tl.tensor, cos: tl.tensor, sin: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The pairs rotated by their angles."""
    return a * cos - b * sin, a * sin + b * cos


def head_tile(heads: int, D: int) -> tuple[int, int, int]:
    """For `heads` heads per token: heads per tile, HALF, and warps for 8 values a lane."""
    half = triton.next_power_of_2(D // 2)
    tile = max(1, min(triton.next_power_of_2(heads), _VALUES // (2 * half)))
    return tile, half, max(1, min(8, tile * half // 128))
