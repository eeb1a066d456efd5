"""Gradients of calls that skip PyTorch's dispatcher."""

import pytest
import torch

from bitdance_kernels import adaln_norm, rope, use_backend
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import cpu_isas


def test_a_recorded_gradient_needs_no_dispatcher(monkeypatch):
    """Of plain tensors; it is that of the registered formula, hooks and all."""
    generator = torch.Generator().manual_seed(0)
    x, scale, shift, grad = torch.randn(4, 3, 16, generator=generator)
    leaves = [t.clone().requires_grad_() for t in (x, scale, shift)]
    op = REGISTRY["adaln_norm"]
    registered = op.overload(*leaves, None, None, 1e-6, "auto")
    expected = torch.autograd.grad(registered, leaves, grad)
    monkeypatch.setattr(op, "overload", None)
    y = adaln_norm(*leaves)
    assert y.grad_fn.name() == "adaln_norm_functionBackward"
    seen = []
    y.register_hook(lambda given: seen.append(given) or 2 * given)
    found = torch.autograd.grad(y, leaves, grad)
    assert torch.equal(y, registered)
    for gradient, half in zip(found, expected, strict=True):
        assert torch.equal(gradient, 2 * half)
    assert torch.equal(seen[0], grad)
    with torch.no_grad():
        assert adaln_norm(*leaves).grad_fn is None


def test_a_constant_that_requires_grad_is_refused():
    x, freqs = torch.randn(1, 2, 1, 4, requires_grad=True), torch.randn(2, 2, 2)
    with pytest.raises(RuntimeError, match="rope: has no gradient, but freqs requires grad"):
        rope(x, freqs.requires_grad_())


@pytest.mark.skipif(not cpu_isas(), reason="signatures need the compiled module")
def test_a_recorded_call_like_one_before_is_not_checked_again(monkeypatch):
    """Also where arguments are expanded or numbers converted; its gradients are the same."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 4, 3, 16, generator=generator)
    scale, shift = torch.randn(2, 16, generator=generator)
    leaves = [t.clone().requires_grad_() for t in (x, scale, shift)]
    op = REGISTRY["adaln_norm"]
    monkeypatch.setattr(op, "_chosen", {})
    checked = []
    check = op._check
    monkeypatch.setattr(op, "_check", lambda *args: checked.append(args) or check(*args))
    runs = []
    for _ in range(3):
        y = adaln_norm(*leaves, eps=1)
        runs.append((y.detach(), *torch.autograd.grad(y, leaves, grad)))
    assert len(checked) == 1
    assert runs[0][2].shape == (16,)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))
    assert adaln_norm(x, *leaves[1:], eps=1).requires_grad
    assert not adaln_norm(x, scale, shift, eps=1).requires_grad
    with torch.no_grad():
        assert not adaln_norm(*leaves, eps=1).requires_grad


def test_a_call_like_one_before_may_not_require_a_gradient_that_it_has_not():
    x, freqs = torch.randn(1, 2, 1, 4, requires_grad=True), torch.randn(2, 2, 2)
    assert rope(x, freqs).requires_grad
    assert rope(x, freqs).requires_grad
    with pytest.raises(RuntimeError, match="rope: has no gradient, but freqs requires grad"):
        rope(x, freqs.requires_grad_())


def test_a_gradient_has_no_second_one_but_on_the_reference():
    x = torch.randn(2, 16, requires_grad=True)
    y = adaln_norm(x, x, x)
    with pytest.raises(RuntimeError, match="second derivatives need"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    y = adaln_norm(x, x, x, backend="reference")
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()


def test_a_backward_pass_takes_the_backend_of_its_forward_call(monkeypatch):
    """Also of a call like one before, and where the default backend has changed since."""
    op = REGISTRY["adaln_norm_backward"]
    used = []
    run_on = op._run_on
    monkeypatch.setattr(
        op, "_run_on", lambda backend, inputs: used.append(backend) or run_on(backend, inputs)
    )
    x, scale, shift = torch.randn(3, 4, 16)
    x.requires_grad_()
    reference = op.backend("reference")
    for _ in range(2):
        adaln_norm(x, scale, shift, backend="reference").sum().backward()
    with use_backend("reference"):
        y = adaln_norm(x, scale, shift)
    y.sum().backward()
    with use_backend("reference"):
        adaln_norm(x, scale, shift).sum().backward()
    best = op.backend("cpu" if cpu_isas() else "reference")
    assert used == [reference, reference, best, reference]
