"""Default dtype and device change nothing of what the kernels make."""

import numpy as np
import pytest
import torch

import bitdance_kernels as bk
from bitdance_kernels import testing
from bitdance_kernels.binary import numpy as front
from bitdance_kernels.philox import noise_words
from tests.cases import all_cases
from tests.defaults import KINDS, foreign_defaults
from tests.test_contract import _runnable

CPU = torch.device("cpu")
CASES = all_cases()


def _results(case, calls):
    """Of all calls, by call, backend and name; with gradients for a few."""
    results = {}
    for n, (call, backend) in enumerate(calls):
        gradients = case.kernel_op.differentiable and n < 4
        made = testing._outputs(case, call, backend, gradients)
        results |= {(call.name, backend, name): tensor for name, tensor in made.items()}
    return results


def _size(call):
    return sum(tensor.numel() for tensor in call.tensors())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_give_the_same_under_foreign_defaults(case):
    """Within ``torch.device`` past PyTorch's dispatcher, and without on the short way."""
    samples = sorted(case.samples(CPU), key=_size)
    able = [(call, backend) for call in samples for backend in _runnable(case, call)]
    # The interpreter is slow: one small call that has something to do.
    slow = [(call, b) for call, b in able if b == "triton" and _size(call)][:1]
    named = slow + [(call, b) for call, b in able if b != "triton"]
    for kind, calls in zip(KINDS, (named, [(call, "auto") for call in samples]), strict=True):
        wanted = _results(case, calls)
        case.kernel_op._chosen.clear()  # a call like one before is not asked what it needs
        with foreign_defaults(kind):
            made = _results(case, calls)
        assert made.keys() == wanted.keys()
        for name, tensor in made.items():
            assert testing._same(tensor, wanted[name]), (kind, *name)


def _what_is_no_op():
    """Helpers that make tensors of their own."""
    keys = bk.noise_keys([1, 2], [0, 7], ar_step=3)
    codes = torch.from_numpy(np.arange(60, dtype=np.uint8).reshape(20, 3))
    x, captured = torch.from_numpy(np.ones((2, 8), np.float32)), []
    if bk.CpuGraph.unavailable() is None:
        graph = bk.CpuGraph()
        captured.append(graph.capture(lambda: bk.swiglu(x)))
        graph.replay()
    ranges = [
        bk.block_causal_ranges(2, 2, 4),
        bk.packed_document_ranges([4, 6], [(5, "causal"), (5, "parallel")], patch_tokens=2),
    ]
    return [
        keys,
        *(bk.noise(keys, 1, 101, backend=name) for name in ("auto", "reference")),
        bk.noise(keys, 1, 101, dtype=torch.float64),
        noise_words(keys, 1, 101),
        *bk.denoise_schedule(5, time_shift=3.0),
        *(bound for each in ranges for bound in (each.start, each.end)),
        *(bk.dense_mask(each) for each in ranges),
        *bk.nearest_codes(codes[:3], codes, 4),
        *captured,
        torch.from_numpy(front.pack_signs(np.ones((2, 8), np.float32))),
        torch.from_numpy(front.unpack_signs(np.ones((2, 8), np.uint8))),
    ]


@pytest.mark.parametrize("kind", [*KINDS, "float16, meta"])
def test_noise_keys_ranges_and_tables_are_the_same_under_foreign_defaults(kind):
    wanted = _what_is_no_op()
    with foreign_defaults(kind):
        made = _what_is_no_op()
    for a, b in zip(made, wanted, strict=True):
        assert testing._same(a, b)
        assert a.device == b.device
