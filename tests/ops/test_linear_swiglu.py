import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import linear_swiglu
from bitdance_kernels.denoise._shared import product_triton
from bitdance_kernels.testing import Call, Invalid, check_backend
from tests.cases.linear_swiglu import CASES

X, W = torch.zeros(3, 8), torch.zeros(10, 8)
INVALID = {
    "linear_swiglu": (
        Invalid("dtype", Call("int", (X.int(), W.int())), TypeError, "x must be float32 .* int32"),
        Invalid("dtype", Call("weight", (X, W.half())), TypeError,
                "weight must be float32, got float16"),
        Invalid("dtype", Call("bias", (X, W, torch.zeros(10).half())), TypeError,
                "bias must be float32, got float16"),
        Invalid("rank", Call("weight", (X, W[0])), ValueError, "weight must be of 2 dimensions"),
        Invalid("size", Call("width", (X, W[:, :7])), ValueError,
                r"weight must be of shape \[2F, C\] = \[10, 8\], got \[10, 7\]"),
        Invalid("size", Call("odd", (X, W[:9])), ValueError, r"weight must be \[2F, C\]"),
        Invalid("size", Call("no channel", (X[:, :0], W[:, :0])), ValueError,
                r"x must be \[..., C\] with C > 0"),
        Invalid("size", Call("bias", (X, W, torch.zeros(5))), ValueError,
                r"bias must be of shape \[2F\] = \[10\], got \[5\]"),
        Invalid("device", Call("weight elsewhere", (X, W.to("meta"))), ValueError,
                "weight must be on cpu like x, got meta"),
    )
}  # fmt: skip
BACKENDS = pytest.mark.parametrize("backend", ["reference", "triton"])


@pytest.fixture(params=[0, 90], ids=["pointers", "TMA"])
def capability(request, monkeypatch):
    """Of the card that the interpreter stands for."""
    monkeypatch.setattr(product_triton.triton_support, "capability", lambda _: request.param)


def test_is_the_formula():
    x, weight, bias = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 6), (8, 6), (8,)))
    first, second = (x @ weight.T + bias).split(4, dim=-1)
    torch.testing.assert_close(
        linear_swiglu(x, weight, bias), first / (1 + torch.exp(-first)) * second
    )
    without = linear_swiglu(x, weight)
    torch.testing.assert_close(without, linear_swiglu(x, weight, torch.zeros_like(bias)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "hidden"), [(3, 5), (33, 24), (150, 72), (600, 136)])
@BACKENDS
def test_small_integers_are_exact(rows, hidden, dtype, backend, capability):
    """Where the sigmoid is 1 both halves are integers, and so is their product."""
    x = torch.randint(2, (rows, 48)) * 2 - 1
    weight = torch.randint(-1, 2, (2 * hidden, 48))
    bias = torch.cat([torch.full((hidden,), 80), torch.randint(-8, 9, (hidden,))])
    exact = F.linear(x.double(), weight.double(), bias.double())
    exact = exact[:, :hidden] * exact[:, hidden:]
    actual = linear_swiglu(*(t.to(dtype) for t in (x, weight, bias)), backend=backend)
    assert torch.equal(actual, exact.to(dtype))


def test_has_no_gradient():
    with pytest.raises(RuntimeError, match="linear_swiglu: has no gradient, but weight requires"):
        linear_swiglu(X, W.clone().requires_grad_())


@pytest.mark.parametrize("width", [64, 192, 768, 1024, 1280, 5120])
def test_widths_of_the_models(width):
    weight = (torch.randn(2 * 16, width) / width**0.5).half()
    call = Call(f"{width}", (torch.randn(3, width).half(), weight, torch.randn(2 * 16).half()))
    check_backend(CASES[0], call, "triton")
