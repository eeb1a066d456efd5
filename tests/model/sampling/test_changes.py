"""Changes of parameters and buffers are found, also those that PyTorch does not count."""

import pytest
import torch

from bitdance.sampling.changes import Changes
from bitdance_kernels import CpuGraph

needs_module = pytest.mark.skipif(
    CpuGraph.unavailable() is not None, reason=str(CpuGraph.unavailable())
)


def _module():
    module = torch.nn.Sequential(
        torch.nn.Linear(64, 48), torch.nn.BatchNorm1d(48), torch.nn.Linear(48, 37)
    )
    module[0].weight = torch.nn.Parameter(torch.randn(64, 48).t())  # not contiguous
    return module.requires_grad_(False)


def _remembered(module):
    changes = Changes(module)
    assert changes.found()
    changes.remember()
    assert not changes.found()
    return changes


@needs_module
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weight[3].zero_(),
        lambda m: m[0].weight.data.mul_(-1),
        lambda m: m[0].bias.data.add_(1),
        lambda m: m[2].weight.data[5, 7].add_(1e-3),
        lambda m: m[2].weight.data[36, 47].add_(1e-3),  # the last one
        lambda m: m[2].weight.data.copy_(m[2].weight.flip(1)),
        lambda m: m[2].weight.data.copy_(m[2].weight.flip(0)),
        lambda m: setattr(m[1].weight, "data", torch.zeros(48)),
        lambda m: m[1].running_mean.add_(1),
        lambda m: setattr(m[1], "weight", torch.nn.Parameter(torch.ones(48))),
        lambda m: m.double(),
        lambda m: m.to("meta"),
    ],
)
def test_finds_changes(change):
    module = _module()
    changes = _remembered(module)
    change(module)
    assert changes.found()


@needs_module
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_finds_a_change_of_an_element_in_any_dtype_and_under_autocast(dtype):
    module = torch.nn.Linear(64, 48).to(dtype).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        changes = _remembered(module)
        module.weight.data[3, 5] *= 1.01
        assert changes.found()


def test_without_the_module_all_may_always_have_changed(monkeypatch):
    monkeypatch.setattr(CpuGraph, "unavailable", staticmethod(lambda: "not built"))
    changes = Changes(_module())
    changes.remember()
    assert changes.found()


def test_what_counts_no_versions_or_lies_elsewhere_may_always_have_changed():
    with torch.inference_mode():
        uncounted = torch.nn.Linear(4, 4)
    for module in (uncounted, torch.nn.Linear(4, 4, device="meta")):
        changes = Changes(module)
        changes.remember()
        assert changes.found()
