"""The Triton kernels of block_causal_attention, in the interpreter."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitdance_kernels import (
    BackendError,
    Ranges,
    block_causal_attention,
    block_causal_ranges,
    dense_mask,
    packed_document_ranges,
)
from bitdance_kernels.attention.block_causal_attention import config
from bitdance_kernels.testing import Call, check_backend
from tests.cases import all_cases
from tests.profiles import share

CASE = all_cases()["block_causal_attention"]


def _inputs(B, T, Tk, heads, D, dtype=torch.float32):
    H, Hkv = heads
    shapes = ((B, T, H, D), (B, Tk, Hkv, D), (B, Tk, Hkv, D))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def _with_gradients(q, k, v, ranges, backend="triton", cotangent=None):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = block_causal_attention(*leaves, ranges, backend=backend)
    cotangent = torch.ones_like(out) if cotangent is None else cotangent
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


# prefix, patches, P, tokens left out of the last patch, heads, D
SEQUENCES = {
    "serial": (0, 45, 1, 0, (1, 1), 16),
    "one prefix token": (1, 5, 4, 3, (2, 1), 32),
    "P = 9": (5, 11, 9, 4, (3, 1), 128),
    "P = 16": (63, 9, 16, 5, (4, 2), 64),
    "P = 36": (17, 4, 36, 35, (8, 1), 32),
    "P = 64, long prefix": (130, 3, 64, 1, (1, 1), 96),
    "prefix only": (131, 0, 1, 0, (2, 1), 24),
    "long": (37, 15, 64, 0, (1, 1), 32),
}


@pytest.mark.parametrize(
    "name", [*list(SEQUENCES)[:-1], pytest.param("long", marks=pytest.mark.nightly)]
)
def test_next_patch_sequences(name):
    """Outputs and all gradients against float64, as close as the plain formulas in float32."""
    prefix, patches, P, missing, heads, D = SEQUENCES[name]
    tokens = prefix + patches * P - missing
    ranges = block_causal_ranges(prefix, patches, P, tokens=tokens)
    inputs = _inputs(1, tokens, tokens, heads, D)
    check_backend(CASE, Call(name, (*inputs, ranges)), "triton")


def test_documents_of_one_token():
    segments = [(40, "causal"), (70, "parallel"), (1, "causal"), (90, "parallel")]
    ranges = packed_document_ranges([1] * 30 + [10, 1, 70, 89, 1], segments, patch_tokens=16)
    inputs = _inputs(2, 201, 201, (2, 1), 16)
    check_backend(CASE, Call("short documents", (*inputs, ranges)), "triton")


@st.composite
def _any_ranges(draw):
    """Ranges over several small tiles, with gaps, blind queries and jumps."""
    T, keys = draw(st.integers(1, 40)), draw(st.integers(0, 40))
    rows = draw(st.sampled_from([None, 2]))
    few = draw(st.lists(st.integers(0, keys), min_size=1, max_size=6))

    def values():
        return torch.tensor(
            sorted(draw(st.lists(st.sampled_from(few), min_size=T, max_size=T))), dtype=torch.int32
        )

    if rows is None:
        return Ranges(values(), values(), keys=keys), keys
    start, end = (torch.stack([values() for _ in range(rows)]) for _ in range(2))
    return Ranges(start, end, keys=keys), keys


def _small_tiles(queries, keys, *, described=False):
    def choose(shape):  # what has no element has no descriptor
        return config.Tile(queries, keys, 4, 1, described and shape.keys > 0)

    return mock.patch.multiple(
        config, **dict.fromkeys(("forward", "query_tile", "key_tile"), choose)
    )


@pytest.mark.parametrize("described", [pytest.param(False, marks=pytest.mark.nightly), True])
@given(_any_ranges(), st.sampled_from([(1, 1), (2, 1)]))
@share(8)  # the interpreter takes a second for each
def test_any_ranges(described, drawn, heads):
    """As the plain formulas; and what nobody sees, or sees nothing, can be NaN."""
    ranges, keys = drawn
    B, T = ranges.start.shape if ranges.start.dim() == 2 else (1, len(ranges.start))
    q, k, v = _inputs(B, T, keys, heads, 8)
    cotangent = torch.randn_like(q)
    plain = _with_gradients(q, k, v, ranges, "reference", cotangent)
    with _small_tiles(16, 16, described=described):
        clean = _with_gradients(q, k, v, ranges, cotangent=cotangent)
        mask = dense_mask(ranges, keys).expand(B, T, keys)
        unseen, blind = ~mask.any(1)[..., None, None], ~mask.any(2)[..., None, None]
        q, cotangent = (x.masked_fill(blind, math.nan) for x in (q, cotangent))
        k, v = k.masked_fill(unseen, math.nan), v.masked_fill(unseen, math.inf)
        poisoned = _with_gradients(q, k, v, ranges, cotangent=cotangent)
    for a, b, c in zip(clean, poisoned, plain, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)


def test_memory_between_the_values_is_not_read():
    """q, k and v are views of one projection, within a larger buffer of NaN."""
    B, T, H, D = 2, 37, 2, 24
    ranges = block_causal_ranges(5, 8, 4)
    buffer = torch.full((B, T + 9, 3, H + 1, D + 8), math.nan)
    view = buffer[:, 4 : T + 4, :, :H, 3 : D + 3]
    view.copy_(torch.randn(view.shape))
    parts = view.unbind(2)
    cotangent = torch.randn(B, T, D, H).transpose(2, 3)  # a stride in every dimension
    strided = _with_gradients(*parts, ranges, cotangent=cotangent)
    plain = _with_gradients(
        *(x.contiguous() for x in parts), ranges, cotangent=cotangent.contiguous()
    )
    for a, b in zip(strided, plain, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_tiles_out_of_sight_are_not_read():
    """A NaN in the last patch stays with the queries of the tiles that see it."""
    ranges = block_causal_ranges(16, 6, 16)
    q, k, v = _inputs(1, 112, 112, (2, 1), 16)
    with _small_tiles(16, 16):
        clean = _with_gradients(q, k, v, ranges)
        k[:, 96:], v[:, 96:] = math.nan, math.nan
        out, dq, dk, dv = _with_gradients(q, k, v, ranges)
    assert torch.equal(out[:, :96], clean[0][:, :96])
    assert torch.equal(dq[:, :96], clean[1][:, :96])
    assert out[:, 96:].isnan().all()
    q[:, :16] = math.nan  # whole tiles of queries that a key does not see
    with _small_tiles(16, 16):
        sliding = Ranges(ranges.start + torch.arange(112, dtype=torch.int32) // 16 * 16, ranges.end)
        out, dq, dk, dv = _with_gradients(q, k.nan_to_num(), v.nan_to_num(), sliding)
    assert dk[:, 16:].isfinite().all()
    assert dv[:, 16:].isfinite().all()


def test_gradients_are_the_same_bits_each_time():
    ranges = block_causal_ranges(3, 9, 16)
    inputs = _inputs(2, 147, 147, (4, 2), 16, torch.float16)
    runs = [_with_gradients(*inputs, ranges) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("turn", range(6))
def test_values_out_of_range_are_not_followed(dtype, turn):
    """Unvalidated ranges that make no sense give some numbers, from within the tensors."""
    wild = torch.tensor([-7, 900, 3, -(2**31), 2**31 - 1, 12], dtype=torch.int32).roll(turn)
    ranges = Ranges(wild, wild.flip(0), validate=False)
    inputs = [x.to(dtype) for x in _inputs(1, 6, 20, (1, 1), 16)]
    for result in _with_gradients(*inputs, ranges):
        assert result.shape[0] == 1


def test_what_the_kernels_do_not_take():
    ranges = block_causal_ranges(4, 0, 1)
    for D, scale, dtype, reason in (
        (136, None, torch.float32, "it handles D up to 128, got 136"),
        (16, 0.0, torch.float32, "it needs a scale over 0, got 0.0"),
        (16, None, torch.float64, "it does not handle torch.float64"),
    ):
        inputs = _inputs(1, 4, 4, (1, 1), D, dtype)
        with pytest.raises(BackendError, match=reason):
            block_causal_attention(*inputs, ranges, scale=scale, backend="triton")
