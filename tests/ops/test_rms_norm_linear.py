import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import (
    linear,
    linear_swiglu,
    pack_weight,
    rms_norm,
    rms_norm_linear,
    rms_norm_linear_swiglu,
    swiglu,
)
from bitdance_kernels.testing import Call, Invalid, cpu_isas

X, W = torch.zeros(3, 8), torch.zeros(6, 8)
X2, P, M = torch.zeros(3, 32), pack_weight(torch.zeros(16, 32)), torch.zeros(3, 2, 2)


def _invalid(letters):
    return (
        Invalid("dtype", Call("int", (X.int(), W.int())), TypeError, "x must be float32 .* int32"),
        Invalid("dtype", Call("weight", (X, W.half())), TypeError,
                "weight must be float32, got float16"),
        Invalid("dtype", Call("norm", (X, W, None, X[0].int())), TypeError,
                "norm_weight must be float32"),
        Invalid("rank", Call("weight", (X, W[0])), ValueError, "weight must be of 2 dimensions"),
        Invalid("size", Call("width", (X, W[:, :7])), ValueError,
                rf"weight must be of shape \[{letters}, C\] = \[6, 8\], got \[6, 7\]"),
        Invalid("size", Call("norm", (X, W, None, torch.ones(7))), ValueError,
                r"norm_weight must be of shape \[C\] = \[8\], got \[7\]"),
        Invalid("size", Call("moments", (X2, P), {"moments": M[:, :1]}), ValueError,
                r"moments must be of shape \[..., C / 16, 2\] = \[3, 2, 2\], got \[3, 1, 2\]"),
        Invalid("device", Call("norm elsewhere", (X, W, None, X[0].to("meta"))), ValueError,
                "norm_weight must be on cpu like x, got meta"),
        Invalid("device", Call("moments elsewhere", (X2, P), {"moments": M.to("meta")}),
                ValueError, "moments must be on cpu like x, got meta"),
    )  # fmt: skip


INVALID = {"rms_norm_linear": _invalid("F"), "rms_norm_linear_swiglu": _invalid("2F")}


@pytest.mark.parametrize("affine", [False, True])
def test_is_the_norm_and_the_product(affine):
    x, weight, bias, norm = (
        torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 16), (32, 16), (32,), (16,))
    )
    norm = norm if affine else None
    expected = F.linear(F.rms_norm(x, (16,), norm, 1e-3), weight, bias)
    for op, layout, wanted in (
        (rms_norm_linear, "rows", expected),
        (rms_norm_linear_swiglu, "swiglu", swiglu(expected)),
    ):
        actual = op(x, weight, bias, norm, eps=1e-3)
        torch.testing.assert_close(actual, wanted)
        assert torch.equal(op(x, pack_weight(weight, layout), bias, norm, eps=1e-3), actual)


@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
def test_panels_give_the_bits_of_the_norm_and_the_product():
    x, weight, bias, norm = (torch.randn(s) for s in ((9, 70), (64, 70), (64,), (70,)))
    panels = pack_weight(weight, "panels")
    n = rms_norm(x, norm, eps=1e-6)
    arguments = (x, panels, bias, norm)
    assert torch.equal(rms_norm_linear(*arguments, backend="cpu"), linear(n, panels, bias))
    gated = rms_norm_linear_swiglu(*arguments, backend="cpu")
    assert torch.equal(gated, linear_swiglu(n, panels, bias, backend="cpu"))


def test_has_no_gradient():
    for op in (rms_norm_linear, rms_norm_linear_swiglu):
        with pytest.raises(RuntimeError, match=f"{op.__name__}: has no gradient, but x requires"):
            op(X.clone().requires_grad_(), W)
