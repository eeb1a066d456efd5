import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitdance_kernels import Ranges, block_causal_attention, block_decode_attention
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.attention.block_decode_attention import config, reference
from bitdance_kernels.testing import Call, Invalid, compare

Q = torch.zeros(2, 3, 4, 8)
C = torch.zeros(2, 5, 2, 8)
N = torch.tensor([3, 5], dtype=torch.int32)


def _row(kind, name, args, error, match):
    return Invalid(kind, Call(name, args), error, f"block_decode_attention: {match}")


INVALID = {
    "block_decode_attention": (
        _row("dtype", "int q", (Q.int(), C, C, N), TypeError, "q must be float32 .* got int32"),
        _row(
            "dtype",
            "cache of half",
            (Q, C, C.half(), N),
            TypeError,
            "v_cache must be float32, got float16",
        ),
        _row(
            "dtype",
            "int64 lengths",
            (Q, C, C, N.long()),
            TypeError,
            "lengths must be int32, got int64",
        ),
        _row("rank", "q without batch", (Q[0], C, C, N), ValueError, "q must be of 4 dimensions"),
        _row(
            "size",
            "batch of cache",
            (Q, C[:1], C, N),
            ValueError,
            r"k_cache must be of shape .* got \[1, 5, 2, 8\]",
        ),
        _row(
            "size",
            "caches differ",
            (Q, C, C[:, :4], N),
            ValueError,
            r"v_cache must be of shape .* got \[2, 4, 2, 8\]",
        ),
        _row(
            "size",
            "heads",
            (Q[:, :, :3], C, C, N),
            ValueError,
            "k_cache must be .* divisor of H = 3, got 2",
        ),
        _row(
            "size",
            "lengths",
            (Q, C, C, N[:1]),
            ValueError,
            r"lengths must be of shape \[B\] = \[2\], got \[1\]",
        ),
        _row(
            "size",
            "one length",
            (Q, C, C, N[0]),
            ValueError,
            r"lengths must be of shape \[B\] = \[2\], got \[\]",
        ),
        _row(
            "device",
            "lengths elsewhere",
            (Q, C, C, N.to("meta")),
            ValueError,
            "lengths must be on cpu like q",
        ),
        _row(
            "value",
            "requires grad",
            (Q.clone().requires_grad_(), C, C, N),
            RuntimeError,
            "has no gradient, but q",
        ),
    )
}


def _inputs(B, P, Tmax, heads, D, dtype=torch.float64):
    q = torch.randn(B, P, heads[0], D, dtype=dtype)
    return q, *torch.randn(2, B, Tmax, heads[1], D, dtype=dtype).unbind()


@given(
    lengths=st.lists(st.integers(-1, 9), min_size=1, max_size=4),
    P=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    wide=st.booleans(),
)
def test_equals_block_causal_attention_over_the_filled_rows(lengths, P, heads, wide):
    dtype = torch.float64 if wide else torch.float32
    q, k, v = _inputs(len(lengths), P, 8, heads, 4, dtype)
    end = torch.tensor(lengths, dtype=torch.int32)
    out = block_decode_attention(q, k, v, end, scale=0.7)
    end = end.clamp(min=0)[:, None].expand(-1, P)
    expected = block_causal_attention(q, k, v, Ranges(torch.zeros_like(end), end), scale=0.7)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_later_keys_with_larger_scores(rows, dtype):
    """What earlier keys have added is scaled down, many times over."""
    q, k, v = _inputs(2, rows, 300, (2, 1), 32, torch.float32)
    q = q.abs()
    k += torch.linspace(-1, 1, 300, dtype=torch.float32, device="cpu").view(300, 1, 1)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    n = torch.tensor([300, 129], dtype=torch.int32)
    truth = reference.attend(q.double(), k.double(), v.double(), n, 0.2)
    plain = reference.attend(q, k, v, n, 0.2)
    out = block_decode_attention(q, k, v, n, scale=0.2)
    compare("staged", out, plain, truth, f"{rows} rows of {dtype}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("formula", [reference.run, reference.attend])
@pytest.mark.parametrize("lengths", [(3, 3), (0, 5), (0, 0)])
def test_rows_beyond_the_length_do_not_leak(dtype, formula, lengths):
    q, k, v = _inputs(2, 4, 7, (4, 2), 8, dtype)
    n = torch.tensor(lengths, dtype=torch.int32)
    clean = formula(q, k, v, n, 0.5)
    for b, length in enumerate(lengths):
        k[b, length:] = math.nan
        v[b, length:] = -math.inf
    assert torch.equal(formula(q, k, v, n, 0.5), clean)
    for b, length in enumerate(lengths):
        assert bool((clean[b] == 0).all()) == (length == 0)


@pytest.mark.parametrize("backend", REGISTRY["block_decode_attention"].backends)
def test_every_backend_reads_the_filled_rows_alone(backend):
    """What lies behind them may be anything, and lengths outside of the cache end with it."""
    if REGISTRY["block_decode_attention"].unavailable(backend):
        pytest.skip("the backend does not run here")
    q, k, v = _inputs(4, 2, 70, (4, 2), 16, torch.float32)
    lengths = torch.tensor([-3, 5, 64, 99], dtype=torch.int32)
    inside = lengths.clamp(0, 70)
    clean = block_decode_attention(q, k, v, inside, backend=backend)
    for b, length in enumerate(inside.tolist()):
        k[b, length:] = math.nan
        v[b, length:] = -math.inf
    assert torch.equal(block_decode_attention(q, k, v, lengths, backend=backend), clean)
    assert not clean[0].any()
    assert clean[1:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(300,) * 16, (300, 7) * 8])
def test_fused_kernel_against_the_formula(dtype, lengths):
    q, k, v = _inputs(16, 16, 319, (6, 2), 64, dtype)
    n = torch.tensor(lengths, dtype=torch.int32)
    truth = reference.attend(q.double(), k.double(), v.double(), n, 0.125)
    plain = reference.attend(q, k, v, n, 0.125)
    compare("staged", reference.run(q, k, v, n, 0.125), plain, truth, "out")


def test_chunks_of_the_batch_change_nothing(monkeypatch):
    inputs = _inputs(5, 4, 9, (2, 1), 8)
    n = torch.tensor([1, 9, 0, 4, 6], dtype=torch.int32)
    whole = block_decode_attention(*inputs, n)
    monkeypatch.setattr(reference, "_SCORES", 2 * 4 * 9 * 2)  # two rows at a time
    torch.testing.assert_close(block_decode_attention(*inputs, n), whole)


HAS_TRITON = REGISTRY["block_decode_attention"].unavailable("triton") is None


def _forced_splits(monkeypatch, splits):
    """Past the limits of `split_count`, so that small calls are split in any way."""
    from bitdance_kernels.attention.block_decode_attention import triton

    monkeypatch.setattr(triton, "split_count", lambda *_: splits)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("P", "heads", "D", "lengths", "splits"),
    [
        (1, (1, 1), 32, (0, 1, 33, 80), 1),
        (1, (8, 1), 64, (0, 1, 33, 80), 2),
        (4, (4, 2), 48, (31, 32), 2),
        (9, (3, 3), 96, (32, 79), 3),
        (16, (4, 1), 16, (80, 5), 3),
        (64, (2, 1), 16, (17, 64), 1),
        (4, (2, 2), 80, (80, 1), 7),  # more splits than tiles
        (1, (2, 1), 128, (0, 3), 64),  # more splits than keys
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_splits(monkeypatch, P, heads, D, lengths, splits, dtype):
    _forced_splits(monkeypatch, splits)
    q, k, v = _inputs(len(lengths), P, 80, heads, D, dtype)
    n = torch.tensor(lengths, dtype=torch.int32)
    truth = reference.attend(q.double(), k.double(), v.double(), n, 0.125)
    plain = reference.attend(q, k, v, n, 0.125)
    for b, length in enumerate(lengths):
        k[b, length:] = math.nan
        v[b, length:] = math.inf
    out = block_decode_attention(q, k, v, n, scale=0.125, backend="triton")
    compare("staged", out, plain, truth, f"{splits} splits")


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("splits", [1, 3])
def test_scores_of_minus_infinity(monkeypatch, splits):
    """Keys that are masked by their scores: the first tiles see nothing, the last ones do."""
    _forced_splits(monkeypatch, splits)
    q, k, v = _inputs(1, 2, 80, (1, 1), 16, torch.float32)
    q.abs_()
    k[:, :40] = -math.inf
    n = torch.tensor([80], dtype=torch.int32)
    out = block_decode_attention(q, k, v, n, backend="triton")
    k, v, n = k[:, 40:], v[:, 40:], n - 40
    plain = reference.attend(q, k, v, n, 0.25)
    truth = reference.attend(q.double(), k.double(), v.double(), n, 0.25)
    compare("staged", out, plain, truth, "out")


@given(programs=st.integers(1, 10_000), rows=st.sampled_from([16, 64]), tiles=st.integers(0, 1_000))
def test_splits_fill_the_card_and_no_more(programs, rows, tiles):
    splits = config.split_count(torch.device("cpu"), programs, rows, 64 * tiles - tiles % 3, 64)
    slots = 132 * (4 if rows == 16 else 2)
    assert 1 <= splits <= max(tiles, 1)
    assert splits == 1 or programs * (splits - 1) < slots
    if 64 * tiles > config.MAX_UNSPLIT_KEYS:
        assert programs * splits >= min(slots, programs * min(tiles, 64))


def test_short_caches_are_not_split(monkeypatch):
    def splits(keys):
        return config.split_count(torch.device("cpu"), 24, 16, keys, 64)

    assert (splits(319), splits(384), splits(385)) == (1, 1, 7)
    monkeypatch.setattr(config, "MAX_UNSPLIT_KEYS", 0)
    assert (splits(319), splits(384), splits(385)) == (5, 6, 7)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_in_what_is_attended_to_is_not_taken_for_nothing(backend, dtype):
    q, lengths = torch.randn(2, 3, 2, 8, dtype=dtype), torch.tensor([3, 4], dtype=torch.int32)
    k, v = torch.randn(2, 2, 6, 2, 8, dtype=dtype).unbind()
    bad = q.clone()
    bad[0, 1, 0] = float("nan")
    out = block_decode_attention(bad, k, v, lengths, backend=backend)
    assert out.isnan().all(-1).nonzero().tolist() == [[0, 1, 0]]
    bad = k.clone()
    bad[1, 3, 1] = float("nan")
    bad[0, 3:] = float("nan")  # is not seen
    out = block_decode_attention(q, bad, v, lengths, backend=backend)
    assert out.isnan().all(-1).nonzero().tolist() == [[1, p, 1] for p in range(3)]
