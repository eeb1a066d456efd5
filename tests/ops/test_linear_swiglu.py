import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import linear_swiglu, pack_weight
from bitdance_kernels.testing import Call, Invalid

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
        Invalid("size", Call("packed", (X, torch.zeros(1, 1, 32, 8))), ValueError,
                r"x must be \[..., C\] with C a multiple of 16 where weight is packed"),
        Invalid("device", Call("weight elsewhere", (X, W.to("meta"))), ValueError,
                "weight must be on cpu like x, got meta"),
    )
}  # fmt: skip


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
def test_small_integers_are_exact(rows, hidden, dtype):
    """Where the sigmoid is 1 both halves are integers, and so is their product."""
    x = torch.randint(2, (rows, 48)) * 2 - 1
    weight = torch.randint(-1, 2, (2 * hidden, 48))
    bias = torch.cat([torch.full((hidden,), 80), torch.randint(-8, 9, (hidden,))])
    exact = F.linear(x.double(), weight.double(), bias.double())
    exact = exact[:, :hidden] * exact[:, hidden:]
    actual = linear_swiglu(*(t.to(dtype) for t in (x, weight, bias)))
    assert torch.equal(actual, exact.to(dtype))


def test_a_packed_weight_gives_the_same_bits():
    x, weight, bias = torch.randn(5, 32), torch.randn(48, 32), torch.randn(48)
    packed = pack_weight(weight, "swiglu")
    assert torch.equal(linear_swiglu(x, packed, bias), linear_swiglu(x, weight, bias))


def test_has_no_gradient():
    with pytest.raises(RuntimeError, match="linear_swiglu: has no gradient, but weight requires"):
        linear_swiglu(X, W.clone().requires_grad_())
