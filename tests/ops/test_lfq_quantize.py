import torch

from bitdance_kernels import lfq_quantize, pack_signs
from bitdance_kernels.testing import Call, Invalid

X = torch.zeros(3, 8)
INVALID = {
    "lfq_quantize": (
        Invalid("dtype", Call("int32", (X.int(),)), TypeError, "x must be float32 .*, got int32"),
        Invalid(
            "rank", Call("scalar", (X[0, 0],)), ValueError, "x must be of at least 1 dimension"
        ),
        Invalid("size", Call("C = 5", (X[:, :5],)), ValueError, "multiple of 8, got shape"),
    )
}


def test_signs_and_bits_agree():
    x = torch.randn(5, 40)
    x[0] = torch.tensor([0.0, -0.0, float("nan"), 1e-40, -1e-40] * 8)
    quantized, packed = lfq_quantize(x)
    assert torch.equal(quantized, torch.where(x > 0, 1.0, -1.0))
    assert torch.equal(packed, pack_signs(x))


def test_the_gradient_goes_straight_through():
    x = torch.randn(5, 16, requires_grad=True)
    quantized, packed = lfq_quantize(x)
    assert not packed.requires_grad
    cotangent = torch.randn(5, 16)
    quantized.backward(cotangent)
    assert torch.equal(x.grad, cotangent)
