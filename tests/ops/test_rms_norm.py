import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import rms_norm
from bitdance_kernels.denoise.rms_norm.op import _op
from bitdance_kernels.testing import Call, Invalid, cpu_threads

X, W = torch.zeros(2, 8), torch.zeros(8)
INVALID = {
    "rms_norm": (
        Invalid("dtype", Call("int32", (X.int(),)), TypeError, "x must be float32 .* got int32"),
        Invalid("dtype", Call("weight", (X, W.int())), TypeError,
                "weight must be float32 .* got int32"),
        Invalid("rank", Call("scalar", (torch.tensor(1.0),)), ValueError,
                r"x must be of at least 1 dimension, got shape \[\]"),
        Invalid("size", Call("no channel", (torch.zeros(2, 0),)), ValueError,
                r"x must be \[..., C\] with C > 0, got shape \[2, 0\]"),
        Invalid("size", Call("weight", (X, W[:7])), ValueError,
                r"weight must be of shape \[C\] = \[8\], got \[7\]"),
        Invalid("device", Call("elsewhere", (X, W.to("meta"))), ValueError,
                "weight must be on cpu like x, got meta"),
    )
}  # fmt: skip
BACKENDS = [name for name in ("reference", "cpu") if _op.unavailable(name) is None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_that_of_pytorch(backend):
    x, weight = torch.randn(5, 4, 33), torch.randn(33)
    for given in (None, weight):
        expected = F.rms_norm(x, (33,), given, 1e-3)
        torch.testing.assert_close(rms_norm(x, given, eps=1e-3, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_zeros_eps_is_all_that_divides(backend):
    assert not rms_norm(X, W + 1, eps=1e-6, backend=backend).any()
    tiny = torch.full((1, 4), 1e-20)
    torch.testing.assert_close(rms_norm(tiny, eps=1e-6, backend=backend), tiny * 1e3)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ module was not built here")
def test_a_row_of_a_batch_is_the_row_alone():
    x, weight = torch.randn(130, 1100), torch.randn(1100)
    whole = rms_norm(x, weight, backend="cpu")
    for threads in (1, 2, 5):
        with cpu_threads(threads):
            assert torch.equal(rms_norm(x, weight, backend="cpu"), whole)
            for row in range(0, 130, 13):
                assert torch.equal(rms_norm(x[row], weight, backend="cpu"), whole[row])


def test_has_no_gradient():
    with pytest.raises(RuntimeError, match="rms_norm: has no gradient, but weight requires"):
        rms_norm(X, W.clone().requires_grad_())
