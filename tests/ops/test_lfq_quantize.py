import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import lfq_quantize, lfq_quantize_commitment, pack_signs
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads

X = torch.zeros(3, 8)
_SHARED = (
    Invalid("dtype", Call("int32", (X.int(),)), TypeError, "x must be float32 .*, got int32"),
    Invalid("rank", Call("scalar", (X[0, 0],)), ValueError, "x must be of at least 1 dimension"),
    Invalid("size", Call("C = 5", (X[:, :5],)), ValueError, "multiple of 8, got shape"),
)
INVALID = {"lfq_quantize": _SHARED, "lfq_quantize_commitment": _SHARED}


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


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_width_and_strided_rows(isa, dtype, threads):
    with cpu_isa(isa), cpu_threads(threads):
        shapes = [(5, channels) for channels in range(8, 264, 8)]
        for rows, channels in [*shapes, (3000, 256)]:  # the last enough for several threads
            x = torch.randn(rows, channels + 3).to(dtype)[:, 1 : channels + 1]
            for actual, expected in zip(
                lfq_quantize(x, backend="cpu"), lfq_quantize(x, backend="reference"), strict=True
            ):
                assert torch.equal(actual, expected)


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern(isa, dtype):
    x = torch.arange(2**16).to(torch.int16).view(dtype)
    with cpu_isa(isa):
        quantized, packed = lfq_quantize(x, backend="cpu")
    assert torch.equal(quantized, lfq_quantize(x, backend="reference")[0])
    assert torch.equal(packed, lfq_quantize(x, backend="reference")[1])


def test_commitment_and_its_gradient():
    x = torch.randn(7, 24, dtype=torch.float64, requires_grad=True)
    quantized, packed, commitment = lfq_quantize_commitment(x)
    assert torch.equal(quantized, lfq_quantize(x)[0])
    assert torch.equal(packed, lfq_quantize(x)[1])
    expected = F.mse_loss(x, quantized.detach())
    torch.testing.assert_close(commitment, expected)
    grad_x, grad_expected = (
        torch.autograd.grad(y, x, retain_graph=True)[0] for y in (commitment, expected)
    )
    torch.testing.assert_close(grad_x, grad_expected)
    cotangent = torch.randn(7, 24, dtype=torch.float64)
    (both,) = torch.autograd.grad((quantized * cotangent).sum() + 3 * commitment, x)
    torch.testing.assert_close(both, cotangent + 3 * grad_expected)


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_commitment_of_many_strided_rows(isa, threads):
    with cpu_isa(isa), cpu_threads(threads):
        for rows, channels in ((5, 8), (3, 2056), (900, 264)):
            x = torch.randn(rows, channels + 3)[:, 1 : channels + 1].requires_grad_()
            quantized, packed, commitment = lfq_quantize_commitment(x, backend="cpu")
            assert torch.equal(quantized, lfq_quantize(x)[0])
            assert torch.equal(packed, lfq_quantize(x)[1])
            expected = F.mse_loss(x.double(), quantized.detach().double())
            torch.testing.assert_close(commitment.double(), expected, rtol=2e-7, atol=0)
            grad_x = torch.autograd.grad(commitment + quantized[:, ::2].sum(), x)[0]
            grad_expected = torch.autograd.grad(expected, x)[0]
            grad_expected[:, ::2] += 1
            torch.testing.assert_close(grad_x, grad_expected)
