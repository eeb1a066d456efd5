import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import linear_gated_residual
from bitdance_kernels.denoise._shared import product_triton
from bitdance_kernels.testing import Call, Invalid, check_backend
from tests.cases.linear_gated_residual import CASES

X, W, B, R = torch.zeros(3, 8), torch.zeros(5, 8), torch.zeros(5), torch.zeros(3, 5)
INVALID = {
    "linear_gated_residual": (
        Invalid("dtype", Call("int", (X.int(), W.int(), None, R, R)), TypeError,
                "x must be float32 .* int32"),
        Invalid("dtype", Call("gate", (X, W, B, R, R.int())), TypeError,
                "gate must be float32 .* int32"),
        Invalid("rank", Call("weight", (X, W[0], B, R, R)), ValueError,
                "weight must be of 2 dimensions"),
        Invalid("size", Call("width", (X, W[:, :7], B, R, R)), ValueError,
                r"weight must be of shape \[F, C\] = \[5, 8\], got \[5, 7\]"),
        Invalid("size", Call("bias", (X, W, B[:4], R, R)), ValueError,
                r"bias must be of shape \[F\] = \[5\], got \[4\]"),
        Invalid("size", Call("residual", (X, W, B, R[:1], R)), ValueError,
                r"residual must be of shape \[..., F\] = \[3, 5\], got \[1, 5\]"),
        Invalid("device", Call("gate elsewhere", (X, W, B, R, R.to("meta"))), ValueError,
                "gate must be on cpu like x, got meta"),
    )
}  # fmt: skip


@pytest.fixture(params=[0, 90], ids=["pointers", "TMA"])
def capability(request, monkeypatch):
    """Of the card that the interpreter stands for."""
    monkeypatch.setattr(product_triton.triton_support, "capability", lambda _: request.param)


def test_is_the_formula():
    shapes = ((2, 3, 6), (5, 6), (5,), (2, 3, 5), (2, 3, 5))
    x, weight, bias, residual, gate = (torch.randn(s, dtype=torch.float64) for s in shapes)
    expected = residual + gate * (x @ weight.T + bias)
    torch.testing.assert_close(linear_gated_residual(x, weight, bias, residual, gate), expected)
    without = linear_gated_residual(x, weight, None, residual, gate)
    torch.testing.assert_close(without, expected - gate * bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(3, 5), (33, 24), (150, 72), (600, 136)])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_small_integers_are_exact(rows, width, dtype, backend, capability):
    x = torch.randint(2, (rows, 48)) * 2 - 1
    weight, bias = torch.randint(-2, 3, (width, 48)), torch.randint(-8, 9, (width,))
    residual, gate = (torch.randint(-4, 5, (rows, width)) for _ in range(2))
    exact = residual + gate * F.linear(x.double(), weight.double(), bias.double())
    arguments = (t.to(dtype) for t in (x, weight, bias, residual, gate))
    actual = linear_gated_residual(*arguments, backend=backend)
    assert torch.equal(actual, exact.to(dtype))


def test_has_no_gradient():
    with pytest.raises(RuntimeError, match="linear_gated_residual: has no gradient, but residual"):
        linear_gated_residual(X, W, B, R.clone().requires_grad_(), R)


@pytest.mark.parametrize("width", [64, 192, 768, 1024, 1280, 5120])
def test_widths_of_the_models(width):
    weight = (torch.randn(16, width) / width**0.5).half()
    others = (torch.randn(16).half(), torch.randn(3, 16).half(), torch.randn(3, 16).half())
    call = Call(f"{width}", (torch.randn(3, width).half(), weight, *others))
    check_backend(CASES[0], call, "triton")
