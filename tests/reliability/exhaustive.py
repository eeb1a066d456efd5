"""Bit ops on every number there is, rows of every width, and every small block-causal mask.

All 65,536 patterns of float16 and of bfloat16 go through every op that makes bits of numbers, and
all bytes through those of bits, on the reference, on each instruction set of the C++ kernels and,
where it is there, in Triton's interpreter. So do rows of 1 to 130 bits and bytes, and all
block-causal masks of up to 12 tokens and 4 blocks, which attention over one-hot values reads out.
``make exhaustive`` takes all 2^32 patterns of float32, in minutes, in chunks; CI
takes those around each border. Results are held against rules on integers, not against code of the
library. Cards are not covered: there the same ops are compared with the reference on samples.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bitdance.models.autoencoder.quantizer import pack_latents, unpack_latents
from bitdance.sampling.flow_sampler import binarize
from bitdance_kernels import (
    BackendError,
    Ranges,
    bit_counts,
    block_causal_attention,
    block_causal_ranges,
    dense_mask,
    finalize_bits,
    flip_bits,
    flip_signs,
    hamming_distance,
    lfq_quantize,
    lfq_quantize_commitment,
    nearest_codes,
    pack_signs,
    unpack_signs,
)
from bitdance_kernels.binary import numpy as numpy_front
from bitdance_kernels.testing import cpu_isa, cpu_isas
from tests.reliability.promise import Promise

__all__ = ["PROMISES", "check_floats", "check_halves", "check_masks", "check_widths", "measure"]

WIDTHS = 130
TOKENS, BLOCKS = 12, 4
MASKS = 902
CHUNK = 2**20
"""Patterns of float32 at a time, which caches hold."""

PROMISES = (
    Promise(
        "16-bit patterns",
        "Patterns of float16 and bfloat16 that every bit op reads alike on every backend",
        2 * 2**16, "patterns", "CI",
    ),
    Promise("widths", "Widths of rows of bits and bytes that are right", WIDTHS, "widths", "CI"),
    Promise(
        "small masks", "Block-causal masks of up to 12 tokens and 4 blocks that attention obeys",
        MASKS, "masks", "CI",
    ),
    Promise(
        "float32 patterns",
        "Patterns of float32 whose bits are equal by rule, scalar and vector code",
        2**32, "patterns", "nightly",
    ),
)  # fmt: skip

_INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}
_UNSIGNED = {torch.float16: np.uint16, torch.bfloat16: np.uint16, torch.float32: np.uint32}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SEED, _CFG, _UNCONDITIONAL = 11, 1.5, 0.75
Results = tuple[torch.Tensor, ...]

_FAST = ("reference", "cpu")
_ALL = (*_FAST, "triton")
"""Triton's interpreter takes a second for 65,536 numbers."""


def _runs(
    op: Callable[..., Any], *args: Any, backends: Sequence[str], **options: Any
) -> Iterator[tuple[str, Results]]:
    """The results of each backend that can run a call here, with each instruction set."""
    for backend in backends:
        for isa in cpu_isas() if backend == "cpu" else ("",):
            try:
                # The interpreter computes in NumPy, which warns of infinity less infinity.
                limit = cpu_isa(isa) if isa else contextlib.nullcontext()
                with limit, np.errstate(invalid="ignore"):
                    found = op(*args, **options, backend=backend)
            except BackendError:  # it does not handle the dtype, or is not there
                continue
            yield f"{op.__name__} {backend} {isa}", found if isinstance(found, tuple) else (found,)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, in which a NaN is equal to itself."""
    return tensor.view(_BITS[tensor.element_size()])


def _check(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    expected: Sequence[torch.Tensor],
    what: str,
    backends: Sequence[str] = _FAST,
    **options: Any,
) -> None:
    """Compare the first results of a call with what the rule gives, on each of the backends."""
    for where, found in _runs(op, *args, backends=backends, **options):
        for n, (actual, right) in enumerate(zip(found, expected, strict=False)):
            if actual.dtype == right.dtype and torch.equal(_bits(actual), _bits(right)):
                continue
            wrong = (actual != right) & ~(actual.isnan() & right.isnan())
            if bool(wrong.any()) or actual.dtype != right.dtype:
                first = int(wrong.flatten().nonzero()[0])
                raise AssertionError(f"{where}, {what}: result {n} differs from element {first} on")


def _positive(patterns: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Whether each pattern is a number over 0: from the least one to infinity."""
    numbers = patterns.numpy().view(_UNSIGNED[dtype])
    return torch.from_numpy(numbers - numbers.dtype.type(1) < _INFINITY[dtype])


def _packed(ones: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.packbits(ones.numpy(), axis=-1, bitorder="little"))


def _signs(ones: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    plus = torch.ones((), dtype=dtype, device="cpu")
    return torch.where(ones, plus, -plus)


@functools.cache
def _flips(shape: tuple[int, ...]) -> torch.Tensor:
    """Which bits ``flip_bits`` flips at rate 1, as the sign bit of int32."""
    none = torch.zeros(*shape[:-1], shape[-1] // 8, dtype=torch.uint8, device="cpu")
    flipped = flip_bits(none, 1.0, seed=_SEED, backend="reference")
    ones = np.unpackbits(flipped.numpy(), axis=-1, bitorder="little")
    return torch.from_numpy(ones).to(torch.bool)


def _check_numbers(
    both: torch.Tensor,
    dtype: torch.dtype,
    flips: torch.Tensor,
    what: str,
    backends: Sequence[str] = _FAST,
) -> None:
    """Every op from numbers to bits; `both`: the patterns [R, C], then R rows to guide by."""
    rows = len(both) // 2
    patterns, x = both[:rows], both.view(dtype)[:rows]
    ones = _positive(patterns, dtype)
    packed, signs = _packed(ones), _signs(ones, dtype)
    _check(pack_signs, (x,), (packed,), what, backends)
    _check(lfq_quantize, (x,), (signs, packed), what, backends)
    _check(lfq_quantize_commitment, (x,), (signs, packed), what, backends)
    _check(finalize_bits, (x,), (signs, packed), what, backends)
    c, u = both.view(dtype).float().chunk(2)
    guided = u + (c - u).mul_(_CFG) > 0
    expected = (_signs(guided, dtype), _packed(guided))
    _check(finalize_bits, (both.view(dtype),), expected, what, backends, cfg=_CFG)
    del c, u, guided, expected
    lowest = torch.iinfo(patterns.dtype).min
    turned = torch.where(flips, patterns ^ lowest, patterns).view(dtype)
    _check(flip_signs, (x, 1.0), (turned,), what, backends, seed=_SEED)


def check_halves(dtype: torch.dtype) -> int:
    """All patterns of a format of 16 bits, and all bytes, through every bit op.

    Returns:
        Number of patterns, 65,536.

    Raises:
        AssertionError: a result is not that of the rule; names op, backend and element.
    """
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32, device="cpu").to(torch.int16)
    patterns = patterns.view(-1, 64)
    flips = _flips(tuple(patterns.shape))
    ones = _positive(patterns, dtype)
    for number in (_UNCONDITIONAL, -_UNCONDITIONAL, 0.0, float("inf"), float("nan")):
        other = torch.full(patterns.shape, number, dtype=dtype, device="cpu")
        both = torch.cat((patterns, other.view(torch.int16)))
        # In the interpreter bfloat16 is not rounded as on a card.
        once = dtype == torch.float16 and number == _UNCONDITIONAL
        what = f"{dtype}, guided by {number}"
        _check_numbers(both, dtype, flips, what, _ALL if once else _FAST)
    signs, packed = binarize(patterns.view(dtype))
    assert torch.equal(signs, _signs(ones, dtype)), "binarize: signs"
    assert torch.equal(packed, _packed(ones)), "binarize: bits"
    assert torch.equal(pack_latents(patterns.view(dtype).T[None])[0], _packed(ones)), "pack_latents"
    if dtype == torch.float16:  # NumPy has no bfloat16 of its own
        found = numpy_front.pack_signs(patterns.view(dtype).numpy())
        assert np.array_equal(found, _packed(ones).numpy()), "numpy.pack_signs"
    every = torch.arange(256, dtype=torch.uint8, device="cpu")[:, None]
    bits = torch.from_numpy(np.unpackbits(every.numpy(), axis=1, bitorder="little"))
    _check(unpack_signs, (every, dtype), (_signs(bits.bool(), dtype),), "every byte")
    return patterns.numel()


def check_bytes() -> int:
    """All pairs of bytes: distances, counts and flips.

    Returns:
        Number of pairs, 65,536.

    Raises:
        AssertionError: a result is not that of the rule.
    """
    every = torch.arange(256, dtype=torch.uint8, device="cpu")[:, None]
    numbers = every.long()
    differ = torch.from_numpy(
        np.unpackbits((numbers ^ numbers.T).byte().numpy()[..., None], axis=2)
    )
    distance = differ.sum(-1, dtype=torch.int32)
    _check(hamming_distance, (every, every), (distance,), "every pair of bytes")
    order = distance.sort(dim=1, stable=True)
    nearest = (order.indices[:, :64], order.values[:, :64])
    _check(nearest_codes, (every, every, 64), nearest, "every pair of bytes")
    for count in range(256):  # the first bytes, and their counts
        bits = np.unpackbits(every[:count].numpy(), axis=1, bitorder="little").sum(
            0, dtype=np.int64
        )
        _check(bit_counts, (every[:count],), (torch.from_numpy(bits),), f"the first {count} bytes")
    pairs = torch.cartesian_prod(every[:, 0], every[:, 0])
    mask = _packed(_flips((len(pairs), 16)))
    _check(flip_bits, (pairs, 1.0), (pairs ^ mask,), "every pair of bytes", seed=_SEED)
    return distance.numel()


def check_widths() -> int:
    """Rows of 1 to 130 bits, padded to bytes by the model layer, and of 1 to 130 bytes.

    Returns:
        Number of widths.

    Raises:
        AssertionError: a result is not that of the rule; names the width.
    """
    draw = torch.Generator(device="cpu").manual_seed(0)
    for width in range(1, WIDTHS + 1):
        what = f"width {width}"
        both = torch.randn(6, 8 * width, generator=draw, dtype=torch.float32, device="cpu")
        both[3:] = _UNCONDITIONAL
        integers = both.view(torch.int32)
        _check_numbers(integers, torch.float32, _flips((3, 8 * width)), what)
        ones = _positive(integers, torch.float32)
        packed = _packed(ones)
        _check(unpack_signs, (packed, torch.float32), (_signs(ones, torch.float32),), what)
        differ = (ones[:, None] != ones[None]).sum(-1, dtype=torch.int32)
        _check(hamming_distance, (packed, packed), (differ,), what)
        _check(bit_counts, (packed,), (ones.sum(0),), what)
        few, some = both[:3, :width], ones[:3, :width]
        signs, bits = binarize(few)
        assert torch.equal(signs, _signs(some, torch.float32)), f"binarize, {what}"
        assert torch.equal(bits, _packed(some)), f"binarize, {what}"
        latents = pack_latents(few[:, :, None])
        assert torch.equal(latents[:, 0], _packed(some)), f"pack_latents, {what}"
        back = unpack_latents(latents, width)[..., 0]
        assert torch.equal(back, _signs(some, torch.float32)), f"unpack_latents, {what}"
    return WIDTHS


def small_masks() -> dict[int, list[tuple[int, int, int]]]:
    """(prefix, blocks, tokens of a block) of every mask, by its number of tokens."""
    found: dict[int, list[tuple[int, int, int]]] = {n: [] for n in range(1, TOKENS + 1)}
    for prefix in range(TOKENS + 1):
        for blocks in range(BLOCKS + 1):
            for P in range(1, TOKENS + 1 if blocks else 2):
                total = prefix + blocks * P
                for n in range(total - P + 1 if blocks else total, total + 1):
                    if 1 <= n <= TOKENS:
                        found[n].append((prefix, blocks, P))
    return found


def check_masks() -> int:
    """Every block-causal mask of up to 12 tokens and 4 blocks, the last of which may lack tokens.

    Returns:
        Number of masks.

    Raises:
        AssertionError: a mask is not as defined, or attention reads another key.
    """
    count = 0
    for n, masks in small_masks().items():
        i = np.arange(n)
        right = []
        ranges = [block_causal_ranges(prefix, N, P, tokens=n) for prefix, N, P in masks]
        for prefix, _, P in masks:
            block = np.where(i < prefix, -1 - i, (i - prefix) // P)
            right.append((i[None] <= i[:, None]) | (block[None] == block[:, None]))
        mask = torch.from_numpy(np.stack(right))
        stacked = Ranges(
            torch.stack([r.start for r in ranges]), torch.stack([r.end for r in ranges]), keys=n
        )
        assert torch.equal(dense_mask(stacked), mask), f"{n} tokens: dense_mask"
        # All scores are equal, so each result is the mean of the values that are seen.
        q = torch.zeros(len(masks), n, 1, TOKENS, dtype=torch.float32, device="cpu")
        v = torch.eye(n, TOKENS, dtype=torch.float32, device="cpu").expand(len(masks), n, TOKENS)
        means = mask / mask.sum(-1, keepdim=True)
        for where, (out,) in _runs(
            block_causal_attention, q, q, v.unsqueeze(2), stacked, backends=_FAST
        ):
            seen = out[:, :, 0, :n]
            assert torch.equal(seen > 0, mask), f"{where}, {n} tokens: other keys"
            torch.testing.assert_close(seen, means, msg=f"{where}, {n} tokens: other weights")
        count += len(masks)
    return count


def check_floats(firsts: Sequence[int], size: int = CHUNK) -> int:
    """Patterns of float32 as int32 numbers, `size` of them from each of `firsts` on.

    Returns:
        Number of patterns.

    Raises:
        AssertionError: a result is not that of the rule.
    """
    both = torch.empty(2, size, dtype=torch.int32, device="cpu")
    both[1].view(torch.float32).fill_(_UNCONDITIONAL)
    flips = _flips((1, size))
    # The reference takes ten times as long as C++, and reads numbers in one way.
    backends = ("cpu",) if cpu_isas() else ("reference",)
    for first in firsts:
        torch.arange(first, first + size, dtype=torch.int32, out=both[0])
        what = f"float32, patterns from {first} on"
        _check_numbers(both, torch.float32, flips, what, backends)
    return size * len(firsts)


def borders(size: int) -> list[int]:
    """First patterns of chunks around zero, the smallest normals, one, infinity and both ends."""
    middles = [-(2**31) + size // 2, 2**31 - size // 2]
    for bits in (0, 0x00800000, 0x3F800000, 0x7F800000):
        middles += [bits, bits - 2**31]
    return sorted({min(max(m - size // 2, -(2**31)), 2**31 - size) for m in middles})


def measure(scale: float) -> Mapping[str, float]:
    """All 16-bit patterns, widths and masks, and that share of the patterns of float32."""
    check_bytes()
    chunks = range(-(2**31), 2**31, CHUNK)
    step = max(1, round(1 / scale))
    return {
        "16-bit patterns": sum(check_halves(dtype) for dtype in (torch.float16, torch.bfloat16)),
        "widths": check_widths(),
        "small masks": check_masks(),
        "float32 patterns": check_floats(chunks[::step]),
    }


def main() -> int:
    """The command ``python -m tests.reliability.exhaustive``; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.exhaustive")
    parser.add_argument("--every", type=int, default=1, help="take only each n-th chunk")
    options = parser.parse_args()
    start = time.monotonic()
    chunks = range(-(2**31), 2**31, CHUNK)[:: options.every]
    for n, first in enumerate(chunks, 1):
        check_floats([first])
        if n % 64 == 0 or n == len(chunks):
            seconds = time.monotonic() - start
            print(f"\r{n * CHUNK:,} patterns of float32, {seconds:.0f} s", end="", flush=True)
    print(f"\nequal to the rule on {', '.join(cpu_isas() or ('the reference',))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
