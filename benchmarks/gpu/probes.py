"""Triton kernels that ask the card one question each."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def read_kernel(x_ptr, out_ptr, blocks, repeats, BLOCK: tl.constexpr):
    """Reads `blocks` blocks of float32 `repeats` times, past the L1 cache.

    Each time another program reads a block, so that what an SM keeps is of no use to it.
    """
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for repeat in range(repeats):
        first = (pid + 37 * repeat) % programs
        for block in range(first, blocks, programs):
            total += tl.load(x_ptr + tl.cast(block, tl.int64) * BLOCK + lane, cache_modifier=".cg")
    tl.store(out_ptr + pid.to(tl.int64) * BLOCK + lane, total)


@triton.jit
def chain_kernel(x_ptr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One small dependent kernel of a chain: each program increments its block."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tl.store(x_ptr + offsets, tl.load(x_ptr + offsets) + 1)


@triton.jit
def row_kernel(x_ptr, y_ptr, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """A pass over rows between two products: each row normalized by its root mean square."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    offsets = tl.program_id(0).to(tl.int64) * width + tl.arange(0, BLOCK)
    there = tl.arange(0, BLOCK) < width
    x = tl.load(x_ptr + offsets, there, other=0.0).to(tl.float32)
    y = x / tl.sqrt(tl.sum(x * x) / width + 1e-6)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), there)
