import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bitdance_kernels import rope, rope_append
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import Call, Invalid, cpu_isas

QKV = torch.zeros(2, 3, 8 * 4)  # H = 4, Hkv = 2, D = 4
C = torch.zeros(2, 5, 2, 4)
N = torch.zeros(2, dtype=torch.int32)
T = torch.zeros(5, 2, 2)
HEADS = {"num_heads": 4, "num_kv_heads": 2}


def _row(kind, name, args, error, match, **kwargs):
    return Invalid(kind, Call(name, args, HEADS | kwargs), error, f"rope_append: {match}")


INVALID = {
    "rope_append": (
        _row(
            "dtype",
            "int qkv",
            (QKV.int(), C, C, N, T),
            TypeError,
            "qkv must be float32 .* got int32",
        ),
        _row(
            "dtype",
            "cache of half",
            (QKV, C.half(), C, N, T),
            TypeError,
            "k_cache must be float32, got float16",
        ),
        _row(
            "dtype",
            "int64 position",
            (QKV, C, C, N.long(), T),
            TypeError,
            "position must be int32, got int64",
        ),
        _row(
            "dtype",
            "int norm",
            (QKV, C, C, N, T),
            TypeError,
            "q_norm must be float32",
            q_norm=torch.ones(4).int(),
        ),
        _row(
            "rank",
            "qkv without batch",
            (QKV[0], C, C, N, T),
            ValueError,
            "qkv must be of 3 dimensions",
        ),
        _row(
            "rank",
            "cache of three",
            (QKV, C[0], C, N, T),
            ValueError,
            "k_cache must be of 4 dimensions",
        ),
        _row(
            "size",
            "width",
            (QKV[..., :28], C, C, N, T),
            ValueError,
            r"qkv must be .* 8 \* 4, got shape \[2, 3, 28\]",
        ),
        _row(
            "size",
            "odd D",
            (QKV, C[..., :3], C, N, T),
            ValueError,
            r"k_cache must be .* with D even",
        ),
        _row(
            "size",
            "cache heads",
            (QKV, C, C[:, :, :1], N, T),
            ValueError,
            r"v_cache must be of shape .* \[2, 5, 2, 4\]",
        ),
        _row(
            "size",
            "short cache",
            (QKV, C[:, :2], C[:, :2], N, T),
            ValueError,
            "k_cache must be of at least P = 3 rows, got 2",
        ),
        _row(
            "size",
            "short table",
            (QKV, C, C, N, T[:2]),
            ValueError,
            "freqs must be of at least P = 3 rows, got 2",
        ),
        _row(
            "size",
            "table width",
            (QKV, C, C, N, T[:, :1]),
            ValueError,
            r"freqs must be of shape .* = \[5, 2, 2\]",
        ),
        _row(
            "size",
            "positions",
            (QKV, C, C, N[:1], T),
            ValueError,
            r"position must be of shape \[B\] = \[2\]",
        ),
        _row(
            "size",
            "norm",
            (QKV, C, C, N, T),
            ValueError,
            r"k_norm must be of shape \[D\] = \[4\]",
            k_norm=torch.ones(3),
        ),
        _row(
            "value",
            "heads",
            (QKV, C, C, N, T),
            ValueError,
            "num_heads must be 1 or more",
            num_heads=0,
        ),
        _row(
            "value",
            "kv heads",
            (QKV, C, C, N, T),
            ValueError,
            "num_kv_heads must be a divisor of H = 4",
            num_kv_heads=3,
        ),
        _row(
            "value",
            "requires grad",
            (QKV.clone().requires_grad_(), C, C, N, T),
            RuntimeError,
            "has no gradient, but qkv",
        ),
        _row(
            "device",
            "cache elsewhere",
            (QKV, C, C.to("meta"), N, T),
            ValueError,
            "v_cache must be on cpu like qkv",
        ),
    )
}


def _table(rows, D):
    angles = torch.rand(rows, D // 2, dtype=torch.float64) * 6
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


@given(
    position=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    P=st.integers(1, 4),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    interleaved=st.booleans(),
    norms=st.tuples(st.booleans(), st.booleans()),
)
def test_against_split_norm_rope_and_slices(position, P, heads, interleaved, norms):
    (H, Hkv), D, B = heads, 6, len(position)
    qkv = torch.randn(B, P, (H + 2 * Hkv) * D, dtype=torch.float64)
    k_cache, v_cache = torch.randn(2, B, 10, Hkv, D, dtype=torch.float64)
    k_wanted, v_wanted = k_cache.clone(), v_cache.clone()
    freqs = _table(10, D)
    weights = [torch.randn(D, dtype=torch.float64) if norm else None for norm in norms]

    out = rope_append(
        qkv, k_cache, v_cache, torch.tensor(position, dtype=torch.int32), freqs,
        num_heads=H, num_kv_heads=Hkv, interleaved=interleaved,
        q_norm=weights[0], k_norm=weights[1], eps=1e-3,
    )  # fmt: skip

    for b, first in enumerate(position):
        angles = freqs[first : first + P]
        q, k, v = qkv[b : b + 1].split((H * D, Hkv * D, Hkv * D), dim=-1)
        q, k, v = (x.unflatten(-1, (-1, D)) for x in (q, k, v))
        if weights[0] is not None:
            q = F.rms_norm(q, (D,), weights[0], 1e-3)
        if weights[1] is not None:
            k = F.rms_norm(k, (D,), weights[1], 1e-3)
        torch.testing.assert_close(out[b : b + 1], rope(q, angles, interleaved=interleaved))
        k_wanted[b, first : first + P] = rope(k, angles, interleaved=interleaved)[0]
        v_wanted[b, first : first + P] = v[0]
    torch.testing.assert_close(k_cache, k_wanted)
    assert torch.equal(v_cache, v_wanted)


def _small(**options):
    return (
        torch.randn(1, 2, 12, **options),
        torch.zeros(1, 4, 1, 4),
        torch.zeros(1, 4, 1, 4),
        torch.tensor([1], dtype=torch.int32),
        _table(4, 4).float(),
    )


def test_same_bits_as_rope():
    """So that a sequence decoded step by step has the keys of the same sequence in training."""
    qkv, k_cache, v_cache, position, freqs = _small()
    out = rope_append(qkv, k_cache, v_cache, position, freqs, num_heads=1)
    q, k, _ = qkv.unflatten(-1, (3, 4)).unsqueeze(3).unbind(2)
    assert torch.equal(out, rope(q, freqs[1:3]))
    assert torch.equal(k_cache[:, 1:3], rope(k, freqs[1:3]))


@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
@pytest.mark.parametrize("first", [-1, 3])
def test_rows_outside_of_the_cache_are_refused_on_the_cpu(first):
    qkv, k_cache, v_cache, position, freqs = _small()
    with pytest.raises(IndexError, match="rope_append: index out of range"):
        rope_append(qkv, k_cache, v_cache, position.fill_(first), freqs, num_heads=1, backend="cpu")
    assert not k_cache.any()


@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
@pytest.mark.parametrize("rows", [1, 2])
def test_rows_without_angles_are_refused_on_the_cpu(rows):
    """The table of angles may be shorter than the cache."""
    qkv, k_cache, v_cache, position, freqs = _small()
    angles = freqs[: position.item() + rows]
    if rows < qkv.shape[1]:
        with pytest.raises(IndexError, match="rope_append: index out of range"):
            rope_append(qkv, k_cache, v_cache, position, angles, num_heads=1, backend="cpu")
        assert not k_cache.any()
    else:
        rope_append(qkv, k_cache, v_cache, position, angles, num_heads=1, backend="cpu")
        assert k_cache.any()


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_caches_may_lie_differently(backend):
    """No stride of the one cache is that of the other."""
    if REGISTRY["rope_append"].unavailable(backend):
        return
    B, P, H, Hkv, D = 2, 3, 4, 2, 8
    qkv = torch.randn(B, P, (H + 2 * Hkv) * D)
    position, freqs = torch.tensor([1, 4], dtype=torch.int32), torch.randn(7, D // 2, 2)
    plain = [torch.zeros(B, 7, Hkv, D) for _ in range(2)]
    wide = [torch.zeros(B, 7, Hkv, D + 3), torch.zeros(Hkv, 9, B, D)]
    apart = [wide[0][..., :D], wide[1].permute(2, 1, 0, 3)[:, :7]]
    pairs = zip(*(cache.stride()[:3] for cache in apart), strict=True)
    assert all(grad_k != grad_v for grad_k, grad_v in pairs)
    sizes = {"num_heads": H, "num_kv_heads": Hkv}
    expected = rope_append(qkv, *plain, position, freqs, **sizes, backend="reference")
    actual = rope_append(qkv, *apart, position, freqs, **sizes, backend=backend)
    for a, b in zip((actual, *apart), (expected, *plain), strict=True):
        torch.testing.assert_close(a, b)
    assert not wide[0][..., D:].any()
    assert not wide[1][:, 7:].any()


def test_cache_may_be_a_part_of_a_larger_tensor():
    caches = torch.zeros(3, 2, 1, 4, 1, 4)  # [layers, k and v, B, Tmax, Hkv, D]
    qkv, _, _, position, freqs = _small()
    rope_append(qkv, caches[1, 0], caches[1, 1], position, freqs, num_heads=1)
    written = caches.abs().sum((-1, -2)) > 0
    assert written[1, :, 0].tolist() == [[False, True, True, False]] * 2
    assert not written[[0, 2]].any()


def test_autograd_notices_the_writing():
    qkv, k_cache, v_cache, position, freqs = _small()
    x = torch.ones((), requires_grad=True)
    loss = (k_cache * x).sum() + (v_cache * x).sum()
    versions = k_cache._version, v_cache._version
    rope_append(qkv, k_cache, v_cache, position, freqs, num_heads=1)
    assert k_cache._version > versions[0]
    assert v_cache._version > versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors():
    with torch.inference_mode():
        qkv, k_cache, v_cache, position, freqs = _small()
        rope_append(qkv, k_cache, v_cache, position, freqs, num_heads=1)
        assert (k_cache[:, 1:3] != 0).all()


def test_position_may_change_between_runs_of_a_compiled_function():
    compiled = torch.compile(
        lambda *args: rope_append(*args, num_heads=1), fullgraph=True, backend="aot_eager"
    )
    qkv, k_cache, v_cache, position, freqs = _small()
    for row in (0, 2):
        compiled(qkv, k_cache, v_cache, position.fill_(row), freqs)
        assert torch.equal(v_cache[0, row : row + 2, 0], qkv[0, :, 8:])
