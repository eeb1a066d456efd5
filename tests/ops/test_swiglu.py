import contextlib

import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import swiglu
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads

INVALID = {
    "swiglu": (
        Invalid("dtype", Call("int32", (torch.zeros(2, 8).int(),)), TypeError,
                "h must be float32 .* got int32"),
        Invalid("rank", Call("scalar", (torch.tensor(1.0),)), ValueError,
                r"h must be of at least 1 dimension, got shape \[\]"),
        Invalid("size", Call("odd", (torch.zeros(2, 7),)), ValueError,
                r"h must be \[..., 2F\], got shape \[2, 7\]"),
    )
}  # fmt: skip


def test_first_half_is_the_gate():
    h = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(swiglu(h), F.silu(h[:, :6]) * h[:, 6:])


def test_gradcheck():
    h = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu, (h,))


def test_saturated_gates_have_finite_gradients():
    h = torch.tensor([[-1e4, -100.0, 100.0, 1e4] * 2], requires_grad=True)
    swiglu(h).sum().backward()
    assert h.grad.isfinite().all()


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_size_changes_no_bit(isa, threads):
    """Large results of float32 may be written past the caches, from within a vector on."""
    h = torch.randn(1057, 2 * 1001)  # results of more than 4 MiB
    with cpu_isa(isa), cpu_threads(threads):
        whole = swiglu(h, backend="cpu")
        parts = [swiglu(rows, backend="cpu") for rows in h.split(50)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("backend", ["reference", *cpu_isas(), "triton"])
def test_the_largest_gates_are_open_or_closed(backend):
    """Of a gate of -1e38 nothing is left, though its exponential overflows."""
    gate = torch.tensor([-3e38, -1e38, -1e30, -1e4, -200.0, -89.0, 89.0, 200.0, 1e4, 1e30, 1e38])
    h = torch.stack([gate, torch.full_like(gate, 0.5)]).flatten()[None].requires_grad_()
    isa = cpu_isa(backend) if backend in cpu_isas() else contextlib.nullcontext()
    with isa:
        y = swiglu(h, backend="cpu" if backend in cpu_isas() else backend)
        (grad,) = torch.autograd.grad(y, h, torch.ones_like(y))
    opened = gate > 0
    torch.testing.assert_close(y[0], torch.where(opened, gate / 2, 0))
    torch.testing.assert_close(grad[0, : len(gate)], torch.where(opened, 0.5, 0.0))
    torch.testing.assert_close(grad[0, len(gate) :], torch.where(opened, gate, 0))
