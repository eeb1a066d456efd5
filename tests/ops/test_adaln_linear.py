import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import adaln_linear, adaln_linear_swiglu, adaln_norm, swiglu
from bitdance_kernels.denoise._shared import product_triton
from bitdance_kernels.testing import Call, Invalid, check_backend
from tests.cases.adaln_linear import CASES

X, W = torch.zeros(3, 8), torch.zeros(6, 8)


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
        Invalid("device", Call("norm elsewhere", (X, X, X, W, None, None, X[0].to("meta"))),
                ValueError, "norm_bias must be on cpu like x, got meta"),
    )  # fmt: skip


INVALID = {"adaln_linear": _invalid("F"), "adaln_linear_swiglu": _invalid("2F")}


@pytest.fixture(params=[0, 90], ids=["pointers", "TMA"])
def capability(request, monkeypatch):
    """Of the card that the interpreter stands for."""
    monkeypatch.setattr(product_triton.triton_support, "capability", lambda _: request.param)


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
@pytest.mark.parametrize(("rows", "features"), [(3, 5), (33, 24), (150, 72)])
def test_small_integers_are_exact(rows, features, dtype, capability):
    """Pairs of +1 and -1: the norm of a row is the row itself, and all that follows is integer.

    (PyTorch's own statistics in float32 are off by an ulp here.)
    """
    signs = torch.randint(2, (rows, 32, 1)) * 2.0 - 1
    x = torch.cat([signs, -signs], dim=-1).flatten(1)
    scale, shift = torch.randint(0, 3, (rows, 64)), torch.randint(-1, 2, (rows, 64))
    weight, bias = torch.randint(-1, 2, (features, 64)), torch.randint(-8, 9, (features,))
    exact = F.linear((x * (1 + scale) + shift).double(), weight.double(), bias.double())
    arguments = (t.to(dtype) for t in (x, scale, shift, weight, bias))
    actual = adaln_linear(*arguments, eps=1e-9, backend="triton")
    assert torch.equal(actual, exact.to(dtype))


def test_a_large_mean_costs_no_accuracy():
    """Moments of tiles are merged: sums of x and x^2 would lose everything here."""
    x, weight = 1000 + torch.randn(20, 64), torch.eye(64)
    zeros = torch.zeros_like(x)
    truth = adaln_norm(x.double(), zeros.double(), zeros.double())
    for backend in ("reference", "triton"):
        actual = adaln_linear(x, zeros, zeros, weight, backend=backend)
        assert (actual - truth).abs().max() < 1000 * 2**-20


def test_has_no_gradient():
    for op in (adaln_linear, adaln_linear_swiglu):
        with pytest.raises(RuntimeError, match=f"{op.__name__}: has no gradient, but x requires"):
            op(X.clone().requires_grad_(), X, X, W)


@pytest.mark.parametrize("width", [64, 192, 768, 1024, 1280, 5120])
def test_widths_of_the_models(width):
    x, scale, shift = torch.randn(3, 3, width).half()
    weight = (torch.randn(16, width) / width**0.5).half()
    call = Call(f"{width}", (x, scale, shift, weight, None, *torch.randn(2, width)))
    check_backend(CASES[0], call, "triton")
