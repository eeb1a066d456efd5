import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import packed_linear, unpack_signs
from bitdance_kernels.testing import Call, Invalid, compare

P = torch.zeros(3, 4, dtype=torch.uint8)
W = torch.zeros(5, 32)
INVALID = {
    "packed_linear": (
        Invalid("dtype", Call("float input", (P.float(), W)), TypeError, "packed must be uint8"),
        Invalid("dtype", Call("bias", (P, W, torch.zeros(5).half())), TypeError,
                "bias must be float32, got float16"),
        Invalid("rank", Call("weight", (P, W[0])), ValueError, "weight must be of 2 dimensions"),
        Invalid("size", Call("width", (P, W[:, :24])), ValueError,
                r"weight must be of shape \[F, C\] = \[5, 32\], got \[5, 24\]"),
        Invalid("size", Call("bias", (P, W, torch.zeros(4))), ValueError,
                r"bias must be of shape \[F\] = \[5\], got \[4\]"),
        Invalid("device", Call("weight elsewhere", (P, W.to("meta"))), ValueError,
                "weight must be on cpu like packed, got meta"),
    )
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_small_integers_are_exact(dtype):
    """+1 and -1 times integers up to 8: every sum is exact in float32, so the result is too."""
    packed = torch.randint(256, (64, 32), dtype=torch.uint8)
    weight, bias = torch.randint(-8, 9, (24, 256)), torch.randint(-8, 9, (24,))
    exact = unpack_signs(packed, torch.float64) @ weight.double().T + bias
    actual = packed_linear(packed, weight.to(dtype), bias.to(dtype))
    assert torch.equal(actual, exact.to(dtype))


def _bits(x):
    return x.view(torch.int32)


def _head(x):
    return (_bits(x) & -65536).view(torch.float32)


def test_three_bfloat16_numbers_are_a_float32_number():
    """What the Triton kernel does to weights: the parts are exact, and so are their sums."""
    exponents = torch.arange(-109, 128, dtype=torch.float32)
    x = torch.exp2(exponents)[:, None] * (1 + torch.rand(len(exponents), 500))
    x = torch.cat([x, -x]).clamp(-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max)
    high = _head(x)
    middle = _head(x - high)
    low = x - high - middle
    for part in (high, middle, low):
        assert torch.equal(part.bfloat16().float(), part)
    assert torch.equal(high + (middle + low), x)


def test_three_products_in_bfloat16_are_one_in_float32():
    signs = unpack_signs(torch.randint(256, (300, 16), dtype=torch.uint8), torch.float32)
    weight = torch.randn(40, 128)
    high = _head(weight)
    middle = _head(weight - high)
    sums = torch.zeros(300, 40)
    for part in (weight - high - middle, middle, high):
        sums += F.linear(signs.bfloat16().float(), part.bfloat16().float())
    exact = signs.double() @ weight.double().T
    compare("staged", sums, F.linear(signs, weight), exact, "three products")


@pytest.mark.parametrize("size", [1.0, 2.0**-105, 2.0**-120, 2.0**-126, 2.0**-140])
def test_weights_of_any_size_are_summed_as_in_float32(size):
    """The smallest of them have bits that no bfloat16 number has."""
    packed = torch.randint(256, (5, 9), dtype=torch.uint8)
    weight = size * torch.randn(6, 72)
    exact = unpack_signs(packed, torch.float64) @ weight.double().T
    eager = F.linear(unpack_signs(packed, torch.float32), weight)
    actual = packed_linear(packed, weight, backend="triton")
    compare("staged", actual, eager, exact, f"weights of {size}")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3.4e38, 2.0**-149])
def test_one_special_weight(value):
    """A NaN whose first bits are those of infinity, too."""
    packed = torch.randint(256, (5, 2), dtype=torch.uint8)
    weight = torch.zeros(3, 16)
    weight[1, 7] = value
    if value != value:
        _bits(weight)[1, 7] = 0x7F800001
    expected = packed_linear(packed, weight, backend="reference")
    actual = packed_linear(packed, weight, backend="triton")
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_gradients_equal_those_of_a_linear_layer():
    packed = torch.randint(256, (2, 7, 3), dtype=torch.uint8)
    weight = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, 7, 5, dtype=torch.float64)
    actual = packed_linear(packed, weight, bias)
    expected = F.linear(unpack_signs(packed, torch.float64), weight, bias)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad(actual, (weight, bias), cotangent),
        torch.autograd.grad(expected, (weight, bias), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    packed = torch.randint(256, (3, 2), dtype=torch.uint8)
    weight = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, b: packed_linear(packed, w, b), (weight, bias))
