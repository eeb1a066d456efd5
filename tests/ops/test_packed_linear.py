import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import packed_linear, unpack_signs
from bitdance_kernels.testing import Call, Invalid

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
