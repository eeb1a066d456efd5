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
