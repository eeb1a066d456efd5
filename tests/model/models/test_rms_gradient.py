"""RMSNorm in training, against PyTorch's."""

import pytest
import torch
from torch import nn

from bitdance.models.layers import RMSNorm
from bitdance_kernels.testing import compare


def _norms(channels=24, eps=1e-5):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        kind(channels, eps=eps, dtype=torch.float32, device="cpu") for kind in (RMSNorm, nn.RMSNorm)
    )
    with torch.no_grad():
        ours.weight.copy_(torch.randn(channels, generator=generator))
        theirs.weight.copy_(ours.weight)
    return ours, theirs


def _results(norm, x, grad):
    x = x.clone().requires_grad_()
    y = norm(x)
    gradients = torch.autograd.grad(y, (x, norm.weight), grad)
    return dict(zip(("y", "grad_x", "grad_weight"), (y.detach(), *gradients), strict=True)), y


@pytest.mark.parametrize("shape", [(7, 24), (3, 40, 24), (24,), (0, 24), (2, 1, 3, 24)])
def test_results_and_gradients(shape):
    ours, theirs = _norms()
    x, grad = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).unbind()
    found, y = _results(ours, x, grad)
    assert y.grad_fn.name() == "_NormBackward"
    usual, _ = _results(theirs, x, grad)
    truth, _ = _results(theirs.double(), x.double(), grad.double())
    for name, value in found.items():
        compare("staged", value, usual[name], truth[name], name)


def test_strided_rows_and_rows_of_zeros():
    ours, theirs = _norms()
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))[:, ::2].clone()
    x[2] = 0
    x = x.t().contiguous().t()
    grad = torch.randn(24, 5).t()
    found, usual = (_results(norm, x, grad)[0] for norm in (ours, theirs))
    torch.testing.assert_close(found, usual)


def test_others_get_pytorchs_norm():
    ours, theirs = _norms()
    x = torch.randn(3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))
    gradients = [torch.func.grad(lambda x, norm=norm: norm(x).sum())(x) for norm in (ours, theirs)]
    assert torch.equal(*gradients)
    tangents = [torch.func.jvp(norm, (x,), (torch.ones_like(x),))[1] for norm in (ours, theirs)]
    assert torch.equal(*tangents)
    traced = torch.jit.trace(ours, x, check_trace=False)
    assert torch.equal(traced(x), theirs(x))
    ours.bfloat16(), theirs.bfloat16()
    assert torch.equal(ours(x.bfloat16()), theirs(x.bfloat16()))


def test_a_second_derivative_is_refused():
    ours, _ = _norms()
    x = torch.randn(3, 24, requires_grad=True)
    (first,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()
