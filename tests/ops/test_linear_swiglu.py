import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import linear_swiglu, pack_weight
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads

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


@pytest.mark.parametrize("isa", cpu_isas())
def test_small_integers_in_panels_are_exact(isa):
    with cpu_isa(isa):
        for rows in (1, 2, 3, 7, 8, 9, 70):
            for channels, hidden in ((48, 16), (131, 48)):
                x = torch.randint(2, (rows, channels)) * 2.0 - 1
                weight = torch.randint(-1, 2, (2 * hidden, channels)).float()
                bias = torch.cat([torch.full((hidden,), 200), torch.randint(-8, 9, (hidden,))])
                first, second = F.linear(x, weight, bias.float()).chunk(2, dim=-1)
                panels = pack_weight(weight, "panels")
                actual = linear_swiglu(x, panels, bias.float(), backend="cpu")
                assert torch.equal(actual, first * second)


@pytest.mark.parametrize("isa", cpu_isas())
def test_a_row_of_a_batch_is_the_row_alone(isa):
    x, weight, bias = torch.randn(13, 600), torch.randn(160, 600) / 24, torch.randn(160)
    panels = pack_weight(weight, "panels")
    with cpu_isa(isa):
        whole = linear_swiglu(x, panels, bias, backend="cpu")
        for threads in (1, 2, 3):
            with cpu_threads(threads):
                assert torch.equal(linear_swiglu(x, panels, bias, backend="cpu"), whole)
                for row in range(13):
                    assert torch.equal(linear_swiglu(x[row], panels, bias), whole[row])


def test_has_no_gradient():
    with pytest.raises(RuntimeError, match="linear_swiglu: has no gradient, but weight requires"):
        linear_swiglu(X, W.clone().requires_grad_())
