"""Triton code of the sampler's noise: Philox words to normals, four a counter."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _uniform(word):
    """(0, 1], in steps of 2^-24."""
    return ((word >> 8).to(tl.int32).to(tl.float32) + 0.5) * 5.9604644775390625e-08


@triton.jit
def _sine_and_cosine(turns):
    """Of `turns` in [0, 1]: quarter turns come off exactly, minimax polynomials do the rest."""
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
    """The normals of blocks `block` of rows `row`, float32 [BLOCK, 4]."""
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
