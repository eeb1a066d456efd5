"""Properties of packed bits."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from bitdance_kernels import (
    bit_counts,
    flip_bits,
    flip_signs,
    hamming_distance,
    lfq_entropy,
    nearest_codes,
    pack_signs,
    unpack_signs,
)
from bitdance_kernels.testing import strided
from tests.reliability.properties._for_all import (
    BYTES,
    LEADING,
    PLACES,
    SEEDS,
    Place,
    for_all,
    rng,
    values,
)

__all__ = ["PROPERTIES"]

_PLACE = st.sampled_from(PLACES)
_DTYPE = st.sampled_from((torch.float32, torch.float16, torch.bfloat16))
_RATE = st.floats(0, 1) | st.sampled_from((0.0, 0.5, 1.0))


def _bytes(seed: int, shape: tuple[int, ...], high: int = 256) -> torch.Tensor:
    return torch.randint(high, shape, generator=rng(seed), dtype=torch.uint8, device="cpu")


@for_all(seed=SEEDS, leading=LEADING, width=BYTES, dtype=_DTYPE, place=_PLACE)
def unpacking_inverts_packing(
    seed: int, leading: tuple[int, ...], width: int, dtype: torch.dtype, place: Place
) -> None:
    x = values(seed, (*leading, 8 * width), dtype)
    with place.limit():
        packed = pack_signs(x, backend=place.backend)
        signs = unpack_signs(packed, dtype, backend=place.backend)
        assert torch.equal(signs, (x > 0).to(dtype) * 2 - 1)
        assert torch.equal(pack_signs(signs, backend=place.backend), packed)
        assert torch.equal(pack_signs(strided(x), backend=place.backend), packed)
        assert torch.equal(unpack_signs(strided(packed), dtype, backend=place.backend), signs)


@for_all(
    seed=SEEDS, sizes=st.tuples(st.integers(0, 9), st.integers(1, 70)), width=BYTES,
    high=st.sampled_from((2, 256)), place=_PLACE, k=st.integers(1, 9),
)  # fmt: skip
def distances_are_those_of_the_signs(
    seed: int, sizes: tuple[int, int], width: int, high: int, place: Place, k: int
) -> None:
    """d = (C - <a, b>) / 2 of +1 and -1, a metric; the nearest are the first of a stable sort."""
    a, b = (_bytes(seed + i, (size, width), high) for i, size in enumerate(sizes))
    left, right = (unpack_signs(t, torch.float32) for t in (a, b))
    expected = ((8 * width - left @ right.T) / 2).to(torch.int32)
    with place.limit():
        found = hamming_distance(a, b, backend=place.backend)
        own = hamming_distance(b, b, backend=place.backend)
        assert torch.equal(found, expected)
        assert torch.equal(hamming_distance(b, a, backend=place.backend), expected.T)
        assert torch.equal(own, own.T)
        assert not own.diagonal().any()
        assert bool((found[:, :, None] + own[None] >= found[:, None]).all())
        k = min(k, len(b))
        indices, distances = nearest_codes(a, b, k, backend=place.backend)
    sorted_, order = expected.sort(dim=1, stable=True)
    assert torch.equal(distances, sorted_[:, :k])
    assert torch.equal(indices, order[:, :k])


@for_all(
    seed=SEEDS, shape=st.tuples(st.integers(0, 5), st.integers(1, 70)), place=_PLACE,
    key=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
    rates=st.tuples(_RATE, _RATE), dtype=_DTYPE,
)  # fmt: skip
def flips_are_those_of_their_place(
    seed: int,
    shape: tuple[int, int],
    place: Place,
    key: tuple[int, int],
    rates: tuple[float, float],
    dtype: torch.dtype,
) -> None:
    """An involution, whatever the shape; a higher rate flips the same bits and more."""
    packed = _bytes(seed, shape)
    low, high = sorted(rates)

    def flip(bits: torch.Tensor, rate: float) -> torch.Tensor:
        return flip_bits(bits, rate, seed=key[0], offset=key[1], backend=place.backend)

    with place.limit():
        flipped = flip(packed, high)
        assert torch.equal(flip(flipped, high), packed)
        rows = flip(packed.view(-1), high) if packed.numel() else packed
        assert torch.equal(rows.view(shape), flipped)
        assert torch.equal(flip(packed[:2], high), flipped[:2])
        fewer = packed ^ flip(packed, low)
        assert torch.equal(fewer & (packed ^ flipped), fewer)
        assert torch.equal(flip(packed, 0.0), packed)
        x = unpack_signs(packed, dtype)
        signs = flip_signs(x, high, seed=key[0], offset=key[1], backend=place.backend)
    assert torch.equal(signs, unpack_signs(flipped, dtype))


@for_all(seed=SEEDS, rows=st.tuples(st.integers(0, 50), st.integers(0, 700)), width=BYTES,
         place=_PLACE)  # fmt: skip
def counts_of_parts_add_up(seed: int, rows: tuple[int, int], width: int, place: Place) -> None:
    packed = _bytes(seed, (sum(rows), width))
    with place.limit():
        whole = bit_counts(packed, backend=place.backend)
        parts = [bit_counts(part, backend=place.backend) for part in packed.split(rows)]
        mixed = bit_counts(packed.flip(0), backend=place.backend)
    assert torch.equal(whole, parts[0] + parts[1])
    assert torch.equal(whole, mixed)
    assert torch.equal(whole, (unpack_signs(packed, torch.float32) > 0).sum(0))


@for_all(
    seed=SEEDS, tokens=st.integers(1, 12), groups=st.integers(1, 3), bits=st.integers(1, 6),
    temperature=st.sampled_from((0.01, 0.1, 1.0)), spread=st.floats(0.001, 0.2), place=_PLACE,
)  # fmt: skip
def entropies_are_those_of_the_softmax(
    seed: int, tokens: int, groups: int, bits: int, temperature: float, spread: float, place: Place
) -> None:
    """Products of bits are the softmax over all codes; no entropy is over that of fair bits."""
    x = torch.randn(
        tokens, groups * bits, generator=rng(seed), dtype=torch.float32, device="cpu"
    ).mul_(spread)
    codes = torch.cartesian_prod(
        *[torch.tensor([-1.0, 1.0], dtype=torch.float64, device="cpu")] * bits
    )
    products = x.double().view(-1, bits) @ codes.view(-1, bits).T
    p = torch.softmax(2 * products / temperature, -1)
    mean = p.mean(0)
    truth = (torch.special.entr(p).sum(-1).mean(), -(mean * (mean + 1e-5).log()).sum())
    with place.limit():
        found = lfq_entropy(x, bits, temperature=temperature, backend=place.backend)
    exact = lfq_entropy(x.double(), bits, temperature=temperature)
    for actual, wide, right in zip(found, exact, truth, strict=True):
        torch.testing.assert_close(wide, right)
        torch.testing.assert_close(actual, right.float())
    # Concave: the mean has at least the mean entropy, less what eps takes from each code.
    assert 0 <= float(exact[0]) <= bits * math.log(2) + 1e-9
    assert float(exact[1]) + 2**bits * 1e-5 >= float(exact[0])


PROPERTIES = (
    unpacking_inverts_packing,
    distances_are_those_of_the_signs,
    flips_are_those_of_their_place,
    counts_of_parts_add_up,
    entropies_are_those_of_the_softmax,
)
