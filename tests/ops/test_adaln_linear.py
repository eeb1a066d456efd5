import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import (
    adaln_linear,
    adaln_linear_swiglu,
    adaln_norm,
    linear,
    linear_swiglu,
    pack_weight,
    swiglu,
)
from bitdance_kernels.testing import Call, Invalid, cpu_isas

X, W = torch.zeros(3, 8), torch.zeros(6, 8)
X2, P, M = torch.zeros(3, 32), pack_weight(torch.zeros(16, 32)), torch.zeros(3, 2, 2)


def _invalid(letters):
    return (
        Invalid("dtype", Call("int", (X.int(), X, X, W.int())), TypeError,
                "x must be float32 .* int32"),
        Invalid("dtype", Call("weight", (X, X, X, W.half())), TypeError,
                "weight must be float32, got float16"),
        Invalid("dtype", Call("scale", (X, X.int(), X, W)), TypeError, "scale must be float32"),
        Invalid("rank", Call("weight", (X, X, X, W[0])), ValueError,
                "weight must be of 2 dimensions"),
        Invalid("size", Call("width", (X, X, X, W[:, :7])), ValueError,
                rf"weight must be of shape \[{letters}, C\] = \[6, 8\], got \[6, 7\]"),
        Invalid("size", Call("shift", (X, X, X[:2], W)), ValueError,
                r"shift must be .* that of x = \[3, 8\], or one that broadcasts .* got \[2, 8\]"),
        Invalid("size", Call("norm", (X, X, X, W, None, torch.ones(7))), ValueError,
                r"norm_weight must be of shape \[C\] = \[8\], got \[7\]"),
        Invalid("dtype", Call("moments", (X, X, X, W), {"moments": M.half()}), TypeError,
                "moments must be float32, got float16"),
        Invalid("size", Call("no moments of 8", (X, X, X, W), {"moments": M}), ValueError,
                r"x must be \[..., C\] with C a multiple of 16 where moments are given, got"),
        Invalid("size", Call("moments", (X2, X2, X2, P), {"moments": M[:2]}), ValueError,
                r"moments must be of shape \[..., C / 16, 2\] = \[3, 2, 2\], got \[2, 2, 2\]"),
        Invalid("size", Call("packed", (X2, X2, X2, P[:, :1])), ValueError,
                rf"weight must be of shape \[{letters} / 16, C / 16, 32, 8\] = \[1, 2, 32, 8\]"),
        Invalid("size", Call("packed, 8 channels", (X, X, X, P)), ValueError,
                r"x must be \[..., C\] with C a multiple of 16 where weight is packed"),
        Invalid("device", Call("norm elsewhere", (X, X, X, W, None, None, X[0].to("meta"))),
                ValueError, "norm_bias must be on cpu like x, got meta"),
    )  # fmt: skip


INVALID = {"adaln_linear": _invalid("F"), "adaln_linear_swiglu": _invalid("2F")}


@pytest.mark.parametrize("affine", [False, True])
def test_is_the_norm_and_the_product(affine):
    shapes = ((2, 3, 6), (2, 3, 6), (2, 3, 6), (8, 6), (8,), (6,), (6,))
    x, scale, shift, weight, bias, *norm = (torch.randn(s, dtype=torch.float64) for s in shapes)
    norm = norm if affine else []
    expected = F.linear(adaln_norm(x, scale, shift, *norm), weight, bias)
    arguments = (x, scale, shift, weight, bias, *norm)
    torch.testing.assert_close(adaln_linear(*arguments), expected)
    torch.testing.assert_close(adaln_linear_swiglu(*arguments), swiglu(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "features"), [(3, 16), (33, 48)])
def test_a_packed_weight_gives_the_same_bits(rows, features, dtype):
    x, scale, shift = torch.randn(3, rows, 32).to(dtype)
    weight, bias = torch.randn(features, 32).to(dtype), torch.randn(features).to(dtype)
    for op, layout in ((adaln_linear, "rows"), (adaln_linear_swiglu, "swiglu")):
        packed = op(x, scale, shift, pack_weight(weight, layout), bias)
        assert torch.equal(packed, op(x, scale, shift, weight, bias))


def test_a_large_mean_costs_no_accuracy():
    """Moments of parts are merged: sums of x and x^2 would lose everything here."""
    x, weight = 1000 + torch.randn(20, 64), torch.eye(64)
    zeros = torch.zeros_like(x)
    truth = adaln_norm(x.double(), zeros.double(), zeros.double())
    actual = adaln_linear(x, zeros, zeros, weight)
    assert (actual - truth).abs().max() < 1000 * 2**-20


@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
def test_panels_give_the_bits_of_the_norm_and_the_product():
    x, scale, shift = torch.randn(3, 9, 70)
    weight, bias, norm = torch.randn(64, 70), torch.randn(64), torch.randn(2, 70)
    panels = pack_weight(weight, "panels")
    n = adaln_norm(x, scale, shift, *norm)
    arguments = (x, scale, shift, panels, bias, *norm)
    assert torch.equal(adaln_linear(*arguments, backend="cpu"), linear(n, panels, bias))
    gated = adaln_linear_swiglu(*arguments, backend="cpu")
    assert torch.equal(gated, linear_swiglu(n, panels, bias, backend="cpu"))


def test_has_no_gradient():
    for op in (adaln_linear, adaln_linear_swiglu):
        with pytest.raises(RuntimeError, match=f"{op.__name__}: has no gradient, but x requires"):
            op(X.clone().requires_grad_(), X, X, W)
