"""The sampler's noise in Triton: Philox words to normals, four a counter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support

# Counters per program, as in denoise_step.
_BLOCK = 128


@triton.jit
def _uniform(word):
    """(0, 1], in steps of 2^-24."""
    return ((word >> 8).to(tl.int32).to(tl.float32) + 0.5) * 5.9604644775390625e-08


@triton.jit
def _sine_and_cosine(turns):
    """Cosine and sine of `turns` in [0, 1]: exact quarter turns, then minimax polynomials."""
    quarters = turns * 4.0
    n = (quarters + 0.5).to(tl.int32)
    f = quarters - n.to(tl.float32)  # [-1/2, 1/2]
    z = f * f
    s = tl.fma(z, -0.00460217699, 0.0796802281)
    s = tl.fma(s, z, -0.645963479)
    s = tl.fma(s, z, 1.57079632) * f
    c = tl.fma(z, 0.000904021634, -0.0208602885)
    c = tl.fma(c, z, 0.253669244)
    c = tl.fma(c, z, -1.23370054)
    c = tl.fma(c, z, 1.0)
    odd = (n & 1) != 0
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    sine = tl.where((n & 2) != 0, -sine, sine)
    return sine, tl.where(((n + 1) & 2) != 0, -cosine, cosine)


@triton.jit
def _normals(word0, word1):
    """Box-Muller."""
    radius = tl.sqrt(-2.0 * tl.log(_uniform(word0)))
    sine, cosine = _sine_and_cosine(_uniform(word1))
    return radius * cosine, radius * sine


@triton.jit
def four_normals(keys_ptr, row, block, step, BLOCK: tl.constexpr):
    """Normals of the counters `block` of rows `row`, float32 [BLOCK, 4]."""
    key = row * 3
    zero = row * 0
    w0, w1, w2, w3 = tl.philox(
        tl.load(keys_ptr + key),
        block.to(tl.int32),
        (zero + step).to(tl.int32),
        tl.load(keys_ptr + (key + 1)).to(tl.int32),
        tl.load(keys_ptr + (key + 2)).to(tl.int32),
        10,
    )
    z0, z1 = _normals(w0, w1)
    z2, z3 = _normals(w2, w3)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (BLOCK, 4))


@triton.jit
def _noise_kernel(
    keys_ptr, step_ptr, y_ptr, elements, row_blocks, total_blocks,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    if WIDE:  # a 64-bit division costs as much as Philox
        i = i.to(tl.int64)
    i = i * BLOCK + tl.arange(0, BLOCK)
    # Lanes past the end read the key of the first row, which exists.
    row = tl.where(i < total_blocks, i // row_blocks, 0)
    block = tl.where(i < total_blocks, i - row * row_blocks, 0)
    row = row.to(tl.int64)
    step = tl.load(step_ptr).to(tl.int64)
    normals = four_normals(keys_ptr, row, block, step, BLOCK)
    in_row = block.to(tl.int64)[:, None] * 4 + tl.arange(0, 4)[None, :]
    inside = (i < total_blocks)[:, None] & (in_row < elements)
    tl.store(y_ptr + (row[:, None] * elements + in_row), normals, mask=inside)


def noise(keys: torch.Tensor, step: torch.Tensor, elements: int) -> torch.Tensor:
    """float32 [R, elements], see ``bitdance_kernels.noise``; `step` is a tensor beside `keys`."""
    y = torch.empty((len(keys), elements), dtype=torch.float32, device=keys.device)
    if y.numel() == 0:
        return y
    row_blocks = triton.cdiv(elements, 4)
    blocks = len(keys) * row_blocks
    with triton_support.on_device(keys):
        _noise_kernel[(triton.cdiv(blocks, _BLOCK),)](
            keys.contiguous(), step, y, elements, row_blocks, blocks,
            WIDE=blocks + _BLOCK >= 2**31, BLOCK=_BLOCK,
            enable_fp_fusion=False,  # as in denoise_step, so that normals are the same to the bit
        )  # fmt: skip
    return y
