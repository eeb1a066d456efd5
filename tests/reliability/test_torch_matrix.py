"""Some samples of the matrix, and that a broken op fails in it."""

import functools

import pytest
import torch
import torch.autograd.forward_ad as fwAD

import bitdance_kernels as bk
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import Case
from tests.cases import all_cases
from tests.reliability import torch_matrix
from tests.reliability.torch_matrix import CELLS, alike, check, check_compiled, some

CASES = all_cases()
# One sample in so many; opcheck takes a second of each.
EVERY = {
    "samples under opcheck": 250, "samples in foreign modes": 25, "samples under transforms": 25,
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_some_samples(name):
    for sample in some(EVERY[name]):
        check(name, sample)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "way"),
    [("pack_signs", {}), ("swiglu", {"dynamic": True}), ("patch_attention", {"autocast": True})],
)
def test_compiled_by_inductor(op, way):
    assert check_compiled(CASES[op], alike(CASES[op])[:2], **way)


def test_turns_take_every_sample():
    turns = [some(2, turn) for turn in range(2)]
    found = sorted((case.name, call.name) for turn in turns for case, call in turn)
    assert found == sorted((case.name, call.name) for case, call in torch_matrix.samples())
    assert len(found) >= max(p.goal for p in torch_matrix.PROMISES[:3])


def _swiglu(op=None):
    """A sample of swiglu, or of a function that stands for it."""
    case = CASES["swiglu"]
    call = next(call for call in case.samples(torch.device("cpu")) if call.tensors()[0].numel())
    wrapped = case.op if op is None else functools.wraps(case.op)(op)
    return Case(wrapped, case.rule, case.samples), call


def _follows_the_default_dtype(h, *, backend="auto"):
    return bk.swiglu(h, backend=backend).to(torch.get_default_dtype())


def _drops_tangents(h, *, backend="auto"):
    return bk.swiglu(fwAD.unpack_dual(h).primal, backend=backend)


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("samples in foreign modes", _follows_the_default_dtype),
        ("samples under transforms", _drops_tangents),
    ],
)
def test_a_fault_is_found_and_named(name, op):
    with pytest.raises(AssertionError, match=rf"{name}, swiglu \["):
        check(name, _swiglu(op))


def test_a_wrong_fake_kernel_is_found(monkeypatch):
    """PyTorch is told of other strides than the result has."""
    fake = REGISTRY["swiglu"]._fake
    monkeypatch.setattr(REGISTRY["swiglu"], "_fake", lambda h: fake(h).mT.contiguous().mT)
    with pytest.raises(AssertionError, match=r"samples under opcheck, swiglu \["):
        check("samples under opcheck", _swiglu())
