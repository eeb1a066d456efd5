"""The CUDA kernels without a card: their device code as C++, on tests/emulated."""

import functools

import pytest
import torch

from bitdance_kernels._shared import native
from bitdance_kernels.autoencode.group_norm_silu import cuda, reference
from bitdance_kernels.testing import compare
from tests.cases.group_norm_silu import CASES, samples
from tests.emulated import build, drivers, needs_compiler

pytestmark = needs_compiler
CASE = CASES[0]
CALLS = [call for call in samples(torch.device("cpu")) if call.args[0].numel() > 0]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    library = build("group_norm_silu", tmp_path_factory.mktemp("emulated"))
    return functools.partial(drivers.group_norm_silu, library)


def _arguments(call):
    """Those of the backends, x channels-last."""
    x, num_groups, *affine = call.args
    weight, bias = (*affine, None, None)[:2]
    options = call.kwargs
    x = x.contiguous(memory_format=torch.channels_last)
    scale, shift, silu = options.get("scale"), options.get("shift"), options.get("silu", True)
    return x, num_groups, weight, bias, scale, shift, silu, options.get("eps", 1e-6)


def _wide(arguments):
    return [t.double() if isinstance(t, torch.Tensor) else t for t in arguments]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_against_the_reference(emulated, call):
    arguments = _arguments(call)
    eager, truth = reference.run(*arguments), reference.run(*_wide(arguments))
    compare(CASE.rule, emulated(None, *arguments), eager, truth, "y")

    torch.manual_seed(0)
    x = arguments[0]
    grad = torch.randn(x.shape).to(x.dtype).contiguous(memory_format=torch.channels_last)
    actual = emulated(grad, *arguments)
    eager = reference.run_backward(grad, *arguments)
    truth = reference.run_backward(grad.double(), *_wide(arguments))
    for name, a, b, c in zip(
        ("x", "weight", "bias", "scale", "shift"), actual, eager, truth, strict=True
    ):
        if a is not None:
            compare("staged", a.to(b.dtype), b, c, f"gradient of {name}")


def test_scale_and_shift_may_be_strided_rows(emulated):
    x, *rest = _arguments(CALLS[1])
    both = torch.cat([rest[3], rest[4]], dim=1)
    views = both.chunk(2, dim=1)
    assert not views[0].is_contiguous()
    expected = emulated(None, x, *rest)
    assert torch.equal(emulated(None, x, *rest[:3], *views, *rest[5:]), expected)


def test_a_large_mean_costs_no_accuracy(emulated):
    x = torch.randn(1, 8, 9, 9).contiguous(memory_format=torch.channels_last) + 1000
    arguments = (x, 2, None, None, None, None, True, 1e-6)
    truth = reference.run(*_wide(arguments))
    compare("staged", emulated(None, *arguments), reference.run(*arguments), truth, "y")


def test_contiguous_maps_are_left_to_the_other_backends(monkeypatch):
    monkeypatch.setattr(native, "cuda_unsupported", lambda *_: None)
    x = torch.zeros(2, 8, 4, 4)
    rest = (2, None, None, None, None, True, 1e-6)
    assert cuda.unsupported(x, *rest) == "it takes channels-last maps"
    last = x.contiguous(memory_format=torch.channels_last)
    assert cuda.unsupported(last, *rest) is None
    assert "got torch.float16 for" in cuda.unsupported_backward(last.half(), last, *rest)


@pytest.mark.skipif(
    native.cuda.unavailable("group_norm_silu") is not None,
    reason="the CUDA module was not built here",
)
def test_c_functions_check_before_they_launch():
    def call(*, images=1, channels=8, positions=16, groups=2, chunk=4, dtype=0, grad_weight=0):
        sizes = (images, channels, positions, groups, chunk)
        weight, nothing = (1, 0, grad_weight), (0, 0, 0)
        rows = (weight, nothing, nothing, nothing)
        native.cuda.group_norm_silu(0, 0, *sizes, *rows, 1, 1e-6, 0, 0, dtype, 0, 0)
        native.cuda.group_norm_silu_backward(
            0, 0, 0, *sizes, *rows, 0, 0, 0, 0, 1, 1e-6, 0, 0, 0, dtype, 0, 0
        )

    for dtypes in ({"dtype": 9}, {"grad_weight": 9}):
        with pytest.raises(RuntimeError, match="dtype code not handled"):
            call(**dtypes)
    wrong = ({"images": -1}, {"channels": 0}, {"groups": 3}, {"groups": 0}, {"chunk": 0})
    for sizes in (*wrong, {"positions": -1}, {"images": 2**31}):
        with pytest.raises(RuntimeError, match="size or argument out of range"):
            call(**sizes)
    call(images=0)  # nothing to launch, on any machine
    call(positions=0)
