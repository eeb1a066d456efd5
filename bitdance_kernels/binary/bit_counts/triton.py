"""bit_counts in Triton: carry-save adders over rows, so that few counters are ever unpacked.

A lane goes down one column of words. Sixteen words become one word of sixteens (and what is left in
ones, twos, fours, eights), bit by bit: two logic operations a word instead of three for each of its
bits. Only after 240 rows are the eight planes of each bit put together and summed over the lanes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows

_LANES = 256
_TRIPS = 15  # of sixteen rows: 240 rows, so that no count of a lane exceeds 255
_PROGRAMS = 2048  # enough for any card; fewer rows take fewer trips


@triton.jit
def _add_two(low, a, b):
    """Full adder of three planes: carry, sum."""
    half = low ^ a
    return (low & a) | (half & b), half ^ b


@triton.jit
def _bit_counts_kernel(
    packed_ptr,
    counts_ptr,
    rows,
    words,
    row_stride,
    trips,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    if BITS == 32:
        packed_ptr = packed_ptr.to(tl.pointer_type(tl.int32))
    column = tl.program_id(1) * WORDS + tl.arange(0, WORDS)  # [WORDS]
    lane = tl.arange(0, ROWS).to(tl.int64)  # [ROWS]
    first = tl.program_id(0).to(tl.int64) * trips * (16 * ROWS)
    inside = (column < words)[None, :]
    zero = tl.zeros([ROWS, WORDS], tl.int32)
    ones, twos, fours, eights = zero, zero, zero, zero
    p16, p32, p64, p128 = zero, zero, zero, zero
    for trip in range(trips):
        at = first + trip * (16 * ROWS) + lane  # rows of the first word
        carry2 = zero
        carry4 = zero
        carry8 = zero
        last = zero
        for i in tl.static_range(16):
            row = at + i * ROWS
            offset = row[:, None] * row_stride + column[None, :]
            word = tl.load(packed_ptr + offset, mask=(row < rows)[:, None] & inside, other=0)
            word = word.to(tl.int32)
            # A carry waits for a second one of its weight; both are then added.
            if i % 2 == 0:
                last = word
            else:
                up, ones = _add_two(ones, last, word)
                if i % 4 == 1:
                    carry2 = up
                else:
                    up, twos = _add_two(twos, carry2, up)
                    if i % 8 == 3:
                        carry4 = up
                    else:
                        up, fours = _add_two(fours, carry4, up)
                        if i % 16 == 7:
                            carry8 = up
                        else:
                            up, eights = _add_two(eights, carry8, up)
                            more = p16 & up
                            p16 = p16 ^ up
                            up = p32 & more
                            p32 = p32 ^ more
                            more = p64 & up
                            p64 = p64 ^ up
                            p128 = p128 ^ more
    # Two counts of at most 255 * ROWS <= 65280 share a register where words have 32 bits.
    FIELDS: tl.constexpr = 0x10001 if BITS == 32 else 1
    STEPS: tl.constexpr = 16 if BITS == 32 else 8
    channel = column.to(tl.int64) * BITS
    for bit in tl.static_range(STEPS):
        count = (ones >> bit) & FIELDS
        count += ((twos >> bit) & FIELDS) << 1
        count += ((fours >> bit) & FIELDS) << 2
        count += ((eights >> bit) & FIELDS) << 3
        count += ((p16 >> bit) & FIELDS) << 4
        count += ((p32 >> bit) & FIELDS) << 5
        count += ((p64 >> bit) & FIELDS) << 6
        count += ((p128 >> bit) & FIELDS) << 7
        total = tl.sum(count, axis=0)  # [WORDS]
        tl.atomic_add(
            counts_ptr + (channel + bit), (total & 0xFFFF).to(tl.int64), mask=column < words
        )
        if BITS == 32:
            high = ((total >> 16) & 0xFFFF).to(tl.int64)
            tl.atomic_add(counts_ptr + (channel + bit + 16), high, mask=column < words)


def unsupported(packed: torch.Tensor) -> str | None:
    return triton_support.unsupported(packed)


def run(packed: torch.Tensor) -> torch.Tensor:
    width = packed.shape[-1]
    counts = packed.new_zeros(8 * width, dtype=torch.int64)
    packed, rows, stride = as_rows(packed)
    if rows == 0:
        return counts
    wide = width % 4 == 0 and stride % 4 == 0 and packed.data_ptr() % 4 == 0
    size = 4 if wide else 1
    words, stride = width // size, stride // size
    block = min(triton.next_power_of_2(words), 64)
    lanes = _LANES // block
    trips = min(_TRIPS, triton.cdiv(rows, 16 * lanes * _PROGRAMS))
    grid = (triton.cdiv(rows, 16 * lanes * trips), triton.cdiv(words, block))
    with triton_support.on_device(packed):
        _bit_counts_kernel[grid](
            packed, counts, rows, words, stride, trips, BITS=8 * size, ROWS=lanes, WORDS=block
        )
    return counts
