import pytest
import torch

from bitdance_kernels import BackendError, adaln_norm
from bitdance_kernels._shared import native
from bitdance_kernels.denoise._shared import rows_cuda
from bitdance_kernels.denoise.adaln_norm import cuda
from bitdance_kernels.testing import Call, Invalid

X = torch.zeros(3, 8)
INVALID = {
    "adaln_norm": (
        Invalid("dtype", Call("int", (X.int(), X, X)), TypeError, "x must be float32 .* got int32"),
        Invalid("dtype", Call("int shift", (X, X, X.int())), TypeError, "shift must be float32 .*"),
        Invalid("rank", Call("scalar", (X[0, 0], X[0, 0], X[0, 0])), ValueError,
                r"x must be of at least 1 dimension, got shape \[\]"),
        Invalid("size", Call("rows of scale", (X, X[:2], X)), ValueError,
                r"scale must be .* that of x = \[3, 8\], or one that broadcasts .* got \[2, 8\]"),
        Invalid("size", Call("weight", (X, X, X, torch.ones(7))), ValueError,
                r"weight must be of shape \[C\] = \[8\], got \[7\]"),
        Invalid("size", Call("no channel", (X[:, :0], X[:, :0], X[:, :0])), ValueError,
                r"x must be \[..., C\] with C > 0, got shape \[3, 0\]"),
        Invalid("device", Call("scale elsewhere", (X, X.to("meta"), X)), ValueError,
                "scale must be on cpu like x, got meta"),
    )
}  # fmt: skip


def _literal(x, scale, shift, weight=None, bias=None, eps=1e-6):
    mean = x.mean(-1, keepdim=True)
    unit = (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + eps).sqrt()
    n = unit if weight is None else unit * weight
    n = n if bias is None else n + bias
    return n * (1 + scale) + shift


def _arguments(affine):
    shapes = [(2, 3, 6)] * 3 + ([(6,)] * 2 if affine else [])
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("affine", [False, True])
def test_forward_and_gradients_of_the_formula(affine):
    arguments = _arguments(affine)
    expected, actual = _literal(*arguments), adaln_norm(*arguments)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, arguments, cotangent),
        torch.autograd.grad(expected, arguments, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("affine", [False, True])
def test_gradcheck(affine):
    assert torch.autograd.gradcheck(adaln_norm, _arguments(affine))


def test_gradients_reach_the_tensor_that_chunks_were_cut_from():
    modulation = torch.randn(4, 48, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 8, dtype=torch.float64)
    scale, shift = modulation.chunk(6, dim=-1)[1:3]
    adaln_norm(x, scale, shift).sum().backward()
    touched = modulation.grad.abs().sum(0) > 0
    assert touched.tolist() == [False] * 8 + [True] * 16 + [False] * 24


def test_a_large_mean_costs_no_accuracy():
    """Statistics in one pass over x and x^2 would lose everything here."""
    x = (1000 + torch.randn(300, 64)).requires_grad_(False)
    zeros = torch.zeros_like(x)
    truth = _literal(x.double(), zeros.double(), zeros.double())
    error = (adaln_norm(x, zeros, zeros) - truth).abs().max()
    assert error < 1000 * 2**-20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [5, 16, 37, 768])
def test_a_first_value_far_from_the_others_costs_no_accuracy(dtype, channels):
    """Sums are of distances to the first value of a row."""
    x = torch.randn(4, channels).to(dtype)
    x[:, 0] = torch.tensor([3e4, -3e4, 7.0, 0.0])
    scale, shift = torch.randn(2, 4, channels).to(dtype)
    wanted = _literal(x.double(), scale.double(), shift.double())
    made = adaln_norm(x, scale, shift)
    bounds = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # a few roundings
    torch.testing.assert_close(made.double(), wanted, rtol=bounds[dtype], atol=bounds[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_of_equal_values_has_no_variance(dtype):
    x = torch.tensor([1.1, -300.0, 0.0, 2e-3]).to(dtype)[:, None].expand(4, 50).contiguous()
    zero = torch.zeros_like(x)
    assert not adaln_norm(x, zero, zero).any()


@pytest.mark.skipif(native.cpu.unavailable("adaln_norm") is not None, reason="no C++ module")
def test_long_rows_of_halves_are_not_for_the_cpu_backend():
    """Rows of halves are widened whole, in buffers on the stack; float32 rows have no limit."""
    x = torch.randn(2, 8200)
    adaln_norm(x, x, x, backend="cpu")
    x = x.bfloat16()
    with pytest.raises(BackendError, match="rows of at most 8192 channels of torch"):
        adaln_norm(x, x, x, backend="cpu")
    assert adaln_norm(x, x, x).isfinite().all()


def test_cuda_says_when_a_card_has_too_little_shared_memory(monkeypatch):
    """99 KiB a block, as on 8.6, 8.9 and 12.0, hold the gradients of 6144 channels' weight."""
    monkeypatch.setattr(rows_cuda, "unsupported", lambda *_: None)
    monkeypatch.setattr(rows_cuda, "_block_memory", lambda _: 99 * 1024)

    def reason(channels, *affine):
        x = torch.zeros(1, channels)
        weight, bias = affine or (torch.ones(channels), None)
        return cuda.unsupported_backward(x, x, x, x, weight, bias, 1e-6)

    assert reason(6144) is None
    assert reason(8192, None, None) is None
    assert "6145 channels take 108480 bytes of shared memory a block" in reason(6145)
    monkeypatch.setattr(rows_cuda, "_block_memory", lambda _: 163 * 1024)
    assert reason(8192) is None
