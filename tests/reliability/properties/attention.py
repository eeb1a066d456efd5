"""Properties of masks, attention and rotary positions."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from bitdance_kernels import (
    Ranges,
    block_causal_attention,
    block_causal_ranges,
    block_decode_attention,
    dense_mask,
    packed_document_ranges,
    rope,
)
from tests.reliability.properties._for_all import PLACES, SEEDS, Place, for_all, rng

__all__ = ["PROPERTIES"]

_PLACE = st.sampled_from(PLACES)
_HEADS = st.sampled_from(((1, 1), (2, 2), (4, 2), (3, 1)))
_DTYPE = st.sampled_from((torch.float32, torch.float16, torch.bfloat16))
_SEGMENT = st.tuples(st.integers(0, 9), st.sampled_from(("causal", "parallel")))
_DOCUMENTS = st.lists(st.lists(_SEGMENT, max_size=3), max_size=4)


def _ends(draw: torch.Generator, shape: tuple[int, int], keys: int) -> torch.Tensor:
    drawn = torch.randint(keys + 1, shape, generator=draw, dtype=torch.int32, device="cpu")
    return drawn.sort(dim=1).values


def _ranges(draw: torch.Generator, shape: tuple[int, int], keys: int) -> Ranges:
    return Ranges(_ends(draw, shape, keys), _ends(draw, shape, keys), keys=keys)


def _normals(draw: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float32, device="cpu").to(dtype)


@for_all(documents=_DOCUMENTS, P=st.integers(1, 5))
def documents_see_what_they_see_alone(documents: list[list[tuple[int, str]]], P: int) -> None:
    """The mask of a pack is the direct sum of the masks of its documents."""

    def ranges(part: list[list[tuple[int, str]]]) -> Ranges:
        lengths = [sum(length for length, _ in document) for document in part]
        segments = [segment for document in part for segment in document]
        return packed_document_ranges(lengths, segments, patch_tokens=P)

    packed = dense_mask(ranges(documents))
    alone = [dense_mask(ranges([document])) for document in documents]
    assert torch.equal(
        packed.int(), torch.block_diag(*(mask.int() for mask in alone)).view_as(packed)
    )


@for_all(seed=SEEDS, B=st.integers(1, 3), T=st.integers(1, 12), keys=st.integers(0, 15))
def masks_are_a_lattice(seed: int, B: int, T: int, keys: int) -> None:
    """The later start and the earlier end are the intersection; causal masks lie in all others."""
    draw = rng(seed)
    a, b = (_ranges(draw, (B, T), keys) for _ in range(2))
    both = Ranges(torch.maximum(a.start, b.start), torch.minimum(a.end, b.end), keys=keys)
    assert torch.equal(dense_mask(both, keys), dense_mask(a, keys) & dense_mask(b, keys))
    prefix, P = int(a.start[0, 0]), 1 + T % 4
    blocks = dense_mask(block_causal_ranges(prefix, B, P))
    causal = dense_mask(block_causal_ranges(prefix, B * P, 1))
    assert torch.equal(causal, torch.ones_like(causal).tril())
    assert torch.equal(blocks & causal, causal)
    # What is seen beyond the causal part is of the own patch: symmetric.
    beyond = blocks & ~causal
    assert torch.equal(beyond & blocks.T, beyond)


@for_all(
    seed=SEEDS, B=st.integers(1, 4), T=st.integers(1, 12), keys=st.integers(1, 20), heads=_HEADS,
    D=st.sampled_from((4, 8, 16, 20)), dtype=_DTYPE, place=_PLACE,
)  # fmt: skip
def attention_is_equivariant_and_blind(
    seed: int,
    B: int,
    T: int,
    keys: int,
    heads: tuple[int, int],
    D: int,
    dtype: torch.dtype,
    place: Place,
) -> None:
    """Rows and groups of heads may change places; what a query does not see is of no matter."""
    draw = rng(seed)
    H, Hkv = heads
    q = _normals(draw, (B, T, H, D), dtype)
    k, v = (_normals(draw, (B, keys, Hkv, D), dtype) for _ in range(2))
    ranges = _ranges(draw, (B, T), keys)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, r: Ranges) -> torch.Tensor:
        return block_causal_attention(q, k, v, r, backend=place.backend)

    rows = torch.randperm(B, generator=draw, dtype=torch.int64, device="cpu")
    groups = torch.randperm(Hkv, generator=draw, dtype=torch.int64, device="cpu")
    own = groups[:, None] * (H // Hkv) + torch.arange(H // Hkv, dtype=torch.int64, device="cpu")
    own = own.flatten()
    with place.limit():
        out = attend(q, k, v, ranges)
        moved = attend(q[rows], k[rows], v[rows], Ranges(ranges.start[rows], ranges.end[rows]))
        regrouped = attend(q[:, :, own], k[:, :, groups], v[:, :, groups], ranges)
        unseen = ~dense_mask(ranges, keys).any(1)[..., None, None]
        blind = attend(
            q, k.masked_fill(unseen, float("nan")), v.masked_fill(unseen, float("inf")), ranges
        )
        k[:, keys // 2], v[:, keys // 2] = float("nan"), float("inf")
        poisoned = attend(q, k, v, ranges)
    assert torch.equal(moved, out[rows])
    assert torch.equal(regrouped, out[:, :, own])
    assert torch.equal(blind, out)
    elsewhere = ~dense_mask(ranges, keys)[..., keys // 2]
    if place.backend == "cpu":
        assert torch.equal(poisoned[elsewhere], out[elsewhere])
    else:  # PyTorch sums in another order where something is not finite
        torch.testing.assert_close(poisoned[elsewhere], out[elsewhere])
    nothing = ~dense_mask(ranges, keys).any(2)
    assert not out[nothing].any()


@for_all(
    seed=SEEDS, B=st.integers(1, 4), P=st.integers(1, 6), Tmax=st.integers(1, 40), heads=_HEADS,
    D=st.sampled_from((4, 16, 20)), dtype=_DTYPE, place=_PLACE,
)  # fmt: skip
def decoding_reads_the_filled_rows_alone(
    seed: int,
    B: int,
    P: int,
    Tmax: int,
    heads: tuple[int, int],
    D: int,
    dtype: torch.dtype,
    place: Place,
) -> None:
    """A row of the batch is the row alone, in a cache that is as long as its tokens."""
    draw = rng(seed)
    q = _normals(draw, (B, P, heads[0], D), dtype)
    k, v = (_normals(draw, (B, Tmax, heads[1], D), dtype) for _ in range(2))
    lengths = torch.randint(Tmax + 1, (B,), generator=draw, dtype=torch.int32, device="cpu")
    filled = torch.arange(Tmax, dtype=torch.int32, device="cpu") < lengths[:, None]
    k, v = (x.masked_fill(~filled[..., None, None], float("nan")) for x in (k, v))
    with place.limit():
        out = block_decode_attention(q, k, v, lengths, backend=place.backend)
        assert out.isfinite().all()
        for b, length in enumerate(lengths.tolist()):
            row = slice(b, b + 1)
            alone = block_decode_attention(
                q[row], k[row, :length], v[row, :length], lengths[row], backend=place.backend
            )
            if place.backend == "cpu":
                assert torch.equal(alone, out[row])
            else:  # PyTorch's kernels sum in an order that depends on the shape
                torch.testing.assert_close(alone, out[row])
            assert length or not alone.any()


@for_all(
    seed=SEEDS, shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 3)),
    pairs=st.integers(1, 20), interleaved=st.booleans(), shift=st.integers(0, 50), place=_PLACE,
)  # fmt: skip
def rotations_turn_back_and_keep_scores(
    seed: int, shape: tuple[int, int, int], pairs: int, interleaved: bool, shift: int, place: Place
) -> None:
    """The opposite angles are the inverse; scores depend on the distance of positions alone."""
    draw = rng(seed)
    x, y = (_normals(draw, (*shape, 2 * pairs), torch.float32) for _ in range(2))
    tokens = torch.arange(shape[1], dtype=torch.float64, device="cpu")
    speed = torch.rand(pairs, generator=draw, dtype=torch.float64, device="cpu")

    def turn(x: torch.Tensor, first: int, sign: int = 1) -> torch.Tensor:
        angles = sign * (tokens + first)[:, None] * speed
        freqs = torch.stack((angles.cos(), angles.sin()), -1).to(x.dtype)
        return rope(x, freqs, interleaved=interleaved, backend=place.backend)

    def scores(first: int) -> torch.Tensor:
        return torch.einsum("bihd,bjhd->bhij", turn(x, first), turn(y, first))

    with place.limit():
        if place.backend == "reference":
            x, y = x.double(), y.double()
        turned = turn(x, shift)
        torch.testing.assert_close(turn(turned, shift, -1), x)
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
        atol = _rounding(x, y, largest_angle=shift + shape[1])
        torch.testing.assert_close(scores(shift), scores(0), rtol=0, atol=atol)
        assert torch.equal(turn(2 * x, shift), 2 * turned)
        assert torch.equal(turn(-x, shift), -turned)


def _rounding(x: torch.Tensor, y: torch.Tensor, largest_angle: float) -> float:
    """Bound of what rounding can change of the difference of two scores.

    That is some units of sines, cosines and products, and of each of the four angles, which are
    float64, half a unit of its own size.
    """
    largest = float(x.norm(dim=-1).max() * y.norm(dim=-1).max())
    of_angles = 4 * largest_angle * torch.finfo(torch.float64).eps / 2
    return (16 * torch.finfo(x.dtype).eps + of_angles) * max(largest, 1.0)


PROPERTIES = (
    documents_see_what_they_see_alone,
    masks_are_a_lattice,
    attention_is_equivariant_and_blind,
    decoding_reads_the_filled_rows_alone,
    rotations_turn_back_and_keep_scores,
)
