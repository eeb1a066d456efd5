import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import pack_weight, rms_norm_qkv, rope_append
from bitdance_kernels.testing import Call, Invalid

X, W, N = torch.zeros(2, 3, 16), torch.zeros(32, 16), torch.ones(16)
K, V, AT, ANGLES = (
    *torch.zeros(2, 2, 9, 1, 8),
    torch.zeros(2, dtype=torch.int32),
    torch.ones(9, 4, 2),
)


def _call(name, **changed):
    """H = 2, Hkv = 1, D = 8."""
    given = {
        "x": X, "weight": W, "norm_weight": N, "k_cache": K, "v_cache": V, "position": AT,
        "freqs": ANGLES, "num_heads": 2, "num_kv_heads": 1, **changed,
    }  # fmt: skip
    return Call(name, tuple(given.pop(name) for name in list(given)[:7]), given)


INVALID = {
    "rms_norm_qkv": (
        Invalid("dtype", _call("int", x=X.int(), weight=W.int()), TypeError,
                "x must be float32 .* int32"),
        Invalid("dtype", _call("cache", k_cache=K.half()), TypeError,
                "k_cache must be float32, got float16"),
        Invalid("dtype", _call("position", position=AT.long()), TypeError,
                "position must be int32, got int64"),
        Invalid("rank", _call("x", x=X[0]), ValueError, "x must be of 3 dimensions"),
        Invalid("rank", _call("weight", weight=W[0]), ValueError, "weight must be of 2 dimensions"),
        Invalid("size", _call("norm", norm_weight=N[:8]), ValueError,
                r"norm_weight must be of shape \[C\] = \[16\], got \[8\]"),
        Invalid("size", _call("rows", weight=W[:24]), ValueError,
                r"weight must be \[\(H \+ 2 Hkv\) D, C\] with \(H \+ 2 Hkv\) D = 4 \* 8"),
        Invalid("size", _call("norm of heads", q_norm=N), ValueError,
                r"q_norm must be of shape \[D\] = \[8\], got \[16\]"),
        Invalid("dtype", _call("norm of heads", k_norm=AT), TypeError, "k_norm must be float"),
        Invalid("size", _call("halves", weight=pack_weight(W), interleaved=False), ValueError,
                "weight must be a matrix where interleaved is False and D = 8 no multiple of 16"),
        Invalid("size", _call("bias", bias=N), ValueError,
                r"bias must be of shape \[F\] = \[32\], got \[16\]"),
        Invalid("size", _call("moments", moments=torch.zeros(2, 3, 2)), ValueError,
                r"moments must be of shape \[..., C / 16, 2\] = \[2, 3, 1, 2\]"),
        Invalid("size", _call("cache", v_cache=V[:, :8]), ValueError,
                r"v_cache must be of shape \[B, Tmax, Hkv, D\] = \[2, 9, 1, 8\]"),
        Invalid("size", _call("angles", freqs=ANGLES[:2]), ValueError,
                "freqs must be of at least P = 3 rows, got 2"),
        Invalid("value", _call("heads", num_kv_heads=3), ValueError,
                "num_kv_heads must be a divisor of H = 2, got 3"),
        Invalid("device", _call("elsewhere", position=AT.to("meta")), ValueError,
                "position must be on cpu like x, got meta"),
    )
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_is_norm_product_and_append(packed):
    x, weight, norm, bias = (
        torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 16), (32, 16), (16,), (32,))
    )
    ours, theirs = torch.randn(2, 2, 9, 1, 8, dtype=torch.float64).expand(2, -1, -1, -1, -1, -1)
    ours, theirs, angles = ours.clone(), theirs.clone(), torch.randn(9, 4, 2, dtype=torch.float64)
    at = torch.tensor([0, 5], dtype=torch.int32)
    qkv = F.linear(F.rms_norm(x, (16,), norm, 1e-5), weight, bias)
    heads = {"num_heads": 2, "num_kv_heads": 1}
    expected = rope_append(qkv, *theirs, at, angles, **heads)
    weight = pack_weight(weight, "rope") if packed else weight
    q = rms_norm_qkv(x, weight, norm, *ours, at, angles, **heads, bias=bias, eps=1e-5)
    torch.testing.assert_close(q, expected)
    torch.testing.assert_close(ours, theirs)


def test_rows_outside_of_the_cache_raise_before_any_is_written():
    caches = torch.zeros(2, 2, 9, 1, 8)
    for at in ([0, 7], [-1, 0]):
        with pytest.raises(IndexError, match="rms_norm_qkv: index out of range"):
            rms_norm_qkv(
                1 + X, 1 + W, N, *caches, torch.tensor(at, dtype=torch.int32), ANGLES,
                num_heads=2, num_kv_heads=1,
            )  # fmt: skip
        assert not caches.any()


def test_has_no_gradient():
    with pytest.raises(RuntimeError, match="rms_norm_qkv: has no gradient, but weight requires"):
        rms_norm_qkv(
            X, W.clone().requires_grad_(), N, K, V, AT, ANGLES, num_heads=2, num_kv_heads=1
        )
