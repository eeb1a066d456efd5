"""Triton kernels that ask the card one question each."""

from __future__ import annotations

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # before programmatic dependent launch
    gdc_launch_dependents = gdc_wait = None

PDL = gdc_wait is not None
_SPINS = tl.constexpr(1 << 22)  # a program that waits longer gives up instead of hanging the card


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
def gather_kernel(x_ptr, counter_ptr, rounds, WORDS: tl.constexpr, ALL: tl.constexpr):
    """`rounds` all-gathers: each program writes its words, waits for all, and reads all of them.

    Two buffers take turns: a program that is a round ahead writes the other one. x is
    int32 [2, programs, WORDS], the counter 0 before the launch.
    """
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    lane = tl.arange(0, WORDS)
    every = tl.arange(0, ALL)
    words = programs * WORDS
    mine = tl.zeros([WORDS], tl.int32)
    for round in range(rounds):
        buffer = x_ptr + tl.cast(round % 2, tl.int64) * words
        tl.store(buffer + pid.to(tl.int64) * WORDS + lane, mine + 1)
        tl.debug_barrier()  # all threads have written before one of them tells
        tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
        spins = 0
        arrived = tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu")
        while (arrived < (round + 1) * programs) & (spins < _SPINS):
            arrived = tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu")
            spins += 1
        tl.debug_barrier()
        seen = tl.load(
            buffer + every.to(tl.int64), mask=every < words, other=0, cache_modifier=".cg"
        )
        # Everybody's words hold the number of the round; a late one would show in the sum.
        mine = tl.zeros([WORDS], tl.int32) + tl.sum(seen) // words
    tl.store(x_ptr + pid.to(tl.int64) * WORDS + lane, mine)
