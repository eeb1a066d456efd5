"""The contract of every op, on every backend that runs here.

An op joins by its package and its case.

The samples come from tests/cases/<package>.py, the calls that must be refused from INVALID in
tests/ops/test_<package>.py.
"""

import contextlib
import importlib
import re
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from bitdance_kernels import BackendError, explain, use_backend
from bitdance_kernels._dispatch.backends import BACKENDS
from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels.testing import (
    check_backend,
    cpu_isa,
    cpu_isas,
    cpu_threads,
    expected_outputs,
    poisoned_memory,
    strided,
)
from tests.calls import recorded
from tests.cases import all_cases

CPU = torch.device("cpu")
CASES = all_cases()


def _package_name(case):
    return case.kernel_op.package.rsplit(".", 1)[1]


def _invalid(case):
    return importlib.import_module(f"tests.ops.test_{_package_name(case)}").INVALID[case.name]


def _runnable(case, call):
    """The backends that can run the call, reference first; computes nothing."""
    reasons = explain(case.op, *call.args, **call.kwargs)
    return [name for name, reason in reasons.items() if reason is None]


EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
EVERY_SAMPLE = pytest.mark.parametrize(
    ("case", "call"),
    [
        pytest.param(case, call, id=f"{case.name}-{call.name}")
        for case in CASES.values()
        for call in case.samples(CPU)
    ],
)
EVERY_INVALID = pytest.mark.parametrize(
    ("case", "invalid"),
    [
        pytest.param(case, invalid, id=f"{case.name}-{invalid.kind}-{invalid.call.name}")
        for case in CASES.values()
        for invalid in _invalid(case)
    ],
)


def _contiguous(value):
    return value.is_contiguous() if isinstance(value, torch.Tensor) else True


@EVERY_SAMPLE
def test_every_backend_matches_the_reference(case, call):
    """Results for arguments with gaps between their rows are bit-identical."""
    runnable, expected = _runnable(case, call), expected_outputs(case, call)
    for backend in runnable:
        for isa in cpu_isas() if backend == "cpu" else (None,):
            with contextlib.nullcontext() if isa is None else cpu_isa(isa), cpu_threads(2):
                results = check_backend(case, call, backend, expected=expected)
                _check_strided(case, call, backend, results)
    assert "reference" in runnable


def _check_strided(case, call, backend, results):
    own = {id(call.args[i]) for i in case.mutates}
    view = call.map(lambda t: t.clone() if id(t) in own else strided(t))
    gaps = pytree.tree_leaves(_run(case, view, backend))
    plain = [t for name, t in results.items() if not name.startswith("gradient")]
    for a, b in zip(plain, gaps, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@EVERY
def test_gradients_of_a_sum_are_those_of_ones(case):
    """Of a sum they are one element that is expanded, of results without elements too."""
    if not case.kernel_op.differentiable:
        return
    for call in case.samples(CPU):
        empty = not all(t.numel() for t in call.tensors())
        for backend in _runnable(case, call):
            # PyTorch sums strides in other orders; of the interpreter the empty ones suffice.
            if backend == "reference" or (backend == "triton" and not empty):
                continue
            found = []
            for total in (torch.sum, _sum_by_ones):
                copies = call.map(torch.clone)
                leaves = [leaf.requires_grad_() for leaf in case.leaves(copies)]
                results = pytree.tree_leaves(
                    case.op(*copies.args, **copies.kwargs, backend=backend)
                )
                totals = [total(t) for t in results if t.requires_grad]
                found.append(torch.autograd.grad(totals, leaves, allow_unused=True))
            for expanded, adjacent in zip(*found, strict=True):
                torch.testing.assert_close(expanded, adjacent, rtol=0, atol=0, equal_nan=True)


def _sum_by_ones(x):
    return (x * torch.ones_like(x)).sum()


def _run(case, call, backend="auto"):
    with torch.no_grad(), poisoned_memory():
        result = case.op(*call.args, **call.kwargs, backend=backend)
    return result, [call.args[i] for i in case.mutates]


@EVERY
def test_same_bits_from_run_to_run(case):
    """With threads; Triton's interpreter has none, and ran twice above."""
    for call in case.samples(CPU):
        if case.mutates:
            continue  # a second run would start from the first one's result
        for backend in _runnable(case, call):
            if backend == "triton":
                continue
            times = 3 if backend == "cpu" else 2
            with cpu_threads(2):
                runs = [pytree.tree_leaves(_run(case, call, backend)) for _ in range(times)]
            for other in runs[1:]:
                for a, b in zip(runs[0], other, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@EVERY
def test_calls_like_one_before_give_the_same(case, monkeypatch):
    """A second equal call is not checked again and runs on the same backend."""
    monkeypatch.setattr(case.kernel_op, "_chosen", {})
    for call in case.samples(CPU):
        if case.mutates:
            continue
        for a, b in zip(*(pytree.tree_leaves(_run(case, call)) for _ in range(2)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert case.kernel_op._chosen or case.mutates or not cpu_isas()


@EVERY
def test_opcheck(case):
    """PyTorch's own checks of schema, fake kernel, autograd registration and tracing."""
    found = recorded(case, next(iter(case.samples(CPU))), requires_grad=True)
    assert found
    for func, args in found:
        torch.library.opcheck(func, args)


@EVERY
def test_compiles_without_graph_break(case):
    call = next(c for c in case.samples(CPU) if all(t.numel() for t in c.tensors()))
    call = call.map(lambda t: t.clone())
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *args: case.op(*args, **call.kwargs), fullgraph=True, backend="aot_eager"
    )
    fresh = call.map(lambda t: t.clone())
    expected = pytree.tree_leaves((case.op(*fresh.args, **fresh.kwargs), fresh.args))
    actual = pytree.tree_leaves((compiled(*call.args), call.args))
    for a, b in zip(actual, expected, strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@EVERY
def test_traced_with_the_reference_it_is_pytorchs_operators(case):
    call = next(c for c in case.samples(CPU) if all(t.numel() for t in c.tensors()))
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def run(*given):
        given = iter([tensor.clone() for tensor in given])
        args, kwargs = pytree.tree_unflatten(
            [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec
        )
        results = pytree.tree_leaves((case.op(*args, **kwargs), [args[i] for i in case.mutates]))
        return tuple(result for result in results if isinstance(result, torch.Tensor))

    with torch.no_grad(), use_backend("reference"), warnings.catch_warnings():
        warnings.simplefilter("ignore", (torch.jit.TracerWarning, DeprecationWarning))
        traced = torch.jit.trace(run, tensors, check_trace=False)
        assert "bitdance::" not in str(traced.graph)
        for a, b in zip(traced(*tensors), run(*tensors), strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


@EVERY_SAMPLE
def test_fake_tensors_have_the_real_shapes(case, call):
    real = pytree.tree_leaves(case.op(*call.args, **call.kwargs))
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fake_call = call.map(mode.from_tensor)
        fake = pytree.tree_leaves(case.op(*fake_call.args, **fake_call.kwargs))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@EVERY_INVALID
def test_bad_arguments_are_refused_before_anything_runs(case, invalid, monkeypatch):
    def launched(self, *_):
        pytest.fail(f"{self.name} went on to choose a backend")

    monkeypatch.setattr(KernelOp, "select", launched)
    with pytest.raises(invalid.error) as caught:
        case.op(*invalid.call.args, **invalid.call.kwargs)
    message = str(caught.value)
    assert re.search(invalid.match, message), message
    assert message.startswith(f"{case.name}: "), message


@EVERY
def test_every_kind_of_bad_argument_has_a_row(case):
    kinds = {invalid.kind for invalid in _invalid(case)}
    needed = {"dtype", "rank", "size"}
    if len(case.kernel_op._tensors) > 1:
        needed.add("device")
    assert needed <= kinds, f"no row of kind {needed - kinds}"


@EVERY
def test_a_backend_that_cannot_run_raises_with_the_reason(case):
    call = next(iter(case.samples(CPU)))
    unknown = rf"{case.name}: backend must be one of auto, .*, got 'gpu'"
    with pytest.raises(ValueError, match=unknown):
        case.op(*call.args, **call.kwargs, backend="gpu")
    for backend in BACKENDS:
        if backend in _runnable(case, call):
            continue
        expected = rf"{case.name}: backend '{backend}' cannot run this call: "
        with pytest.raises(BackendError, match=expected):
            case.op(*call.args, **call.kwargs, backend=backend)
        with use_backend(backend), pytest.raises(BackendError, match=expected):
            case.op(*call.args, **call.kwargs)


@EVERY
def test_samples_hold_the_odd_shapes(case):
    """Without an empty call, or with whole dtypes missing, the tests above would prove little."""
    calls = list(case.samples(CPU))
    assert len({call.name for call in calls}) == len(calls)
    assert any(t.numel() == 0 for call in calls for t in call.tensors()), "no empty call"
    floats = {t.dtype for call in calls for t in call.tensors() if t.is_floating_point()}
    floats |= {v for call in calls for v in call.args if isinstance(v, torch.dtype)}
    if floats:
        assert {torch.float32, torch.float16, torch.bfloat16} <= floats, floats
