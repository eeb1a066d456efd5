"""Selection of a backend, and its cost."""

import dataclasses
import importlib
import os
import statistics
import subprocess
import sys
import time
import timeit
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bitdance_kernels import (
    BackendError,
    adaln_norm,
    explain,
    gated_residual,
    linear,
    pack_signs,
    rope_append,
    swiglu,
    use_backend,
)
from bitdance_kernels._dispatch import fast_path
from bitdance_kernels._dispatch import op as op_module
from bitdance_kernels._dispatch.op import REGISTRY, KernelOp
from bitdance_kernels.binary.pack_signs import cpu as pack_signs_cpu
from bitdance_kernels.testing import cpu_isas


@pytest.fixture
def chosen(monkeypatch):
    """Names of the backends whose `run` was called, in order."""
    calls = []
    op = REGISTRY["pack_signs"]
    for name in op.backends:
        backend = op.backend(name)
        if isinstance(backend, str):
            continue

        def run(*args, name=name, run=backend.run):
            calls.append(name)
            return run(*args)

        monkeypatch.setitem(
            op._loaded, name, dataclasses.replace(backend, run=run, fills_results=False)
        )
    monkeypatch.setattr(op, "_chosen", {})
    return calls


def test_auto_takes_the_first_that_can(chosen):
    pack_signs(torch.randn(8))
    pack_signs(torch.randn(8, dtype=torch.float64))
    assert chosen == ["cpu" if cpu_isas() else "reference", "reference"]


def test_argument_beats_context_beats_auto(chosen):
    x = torch.randn(8)
    with use_backend("reference"):
        pack_signs(x)
        pack_signs(x, backend="triton")
        with use_backend("auto"):
            pack_signs(x)
    pack_signs(x)
    best = "cpu" if cpu_isas() else "reference"
    assert chosen == ["reference", "triton", best, best]


def test_a_named_backend_never_falls_back(chosen):
    x = torch.randn(8, dtype=torch.float64)
    with pytest.raises(
        BackendError, match=r"backend .triton. cannot .* does not handle torch.float64"
    ):
        pack_signs(x, backend="triton")
    refused = pytest.raises(ValueError, match=r"use_backend: name must be one of .* got 'metal'")
    with refused, use_backend("metal"):
        pass
    assert chosen == []


def test_a_broken_compiled_module_is_reported_at_first_use(monkeypatch):
    from bitdance_kernels._shared import native, native_modules

    broken = native.NativeModule("_broken", "it was not built")
    assert broken.unavailable() == "it was not built"
    with pytest.raises(
        RuntimeError, match=r"bitdance_kernels\._broken\.pack_signs: it was not built"
    ):
        broken.pack_signs(0)

    def fail(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    importlib.import_module("bitdance_kernels.binary.pack_signs.cpu")  # before `fail` takes effect
    monkeypatch.setattr(native_modules.importlib, "import_module", fail)
    monkeypatch.setattr(native, "cpu", native.NativeModule("_cpu", "it was not built"))
    monkeypatch.setattr(REGISTRY["pack_signs"], "_chosen", {})  # filled while the module was there
    with pytest.raises(BackendError, match=r"_cpu failed to load \(libgomp.so.1: cannot open"):
        pack_signs(torch.randn(8), backend="cpu")
    expected = pack_signs(torch.ones(8))  # auto works without it
    assert expected.item() == 255


def test_a_module_from_an_older_checkout_is_reported(monkeypatch):
    from bitdance_kernels._shared import native

    old = native.NativeModule("_old", "")
    old._module = sys  # any module without the function
    assert "older than this code: build it again" in old.unavailable("pack_signs")


def test_explain_tells_every_backend_and_computes_nothing(chosen, capsys):
    reasons = explain(pack_signs, torch.randn(8, dtype=torch.float64))
    assert reasons["reference"] is None
    assert reasons["triton"] == "it does not handle torch.float64"
    assert list(reasons) == ["reference", "cpu", "triton", "cuda"]
    printed = capsys.readouterr().out
    assert "pack_signs on cpu" in printed
    assert "reference  yes  <- auto takes this one" in printed
    assert chosen == []


def test_explain_checks_the_arguments_and_wants_an_op():
    with pytest.raises(TypeError, match="pack_signs: x must be float32"):
        explain(pack_signs, torch.zeros(8, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"explain: .* is not an op of bitdance_kernels"):
        explain(torch.sign, torch.zeros(8))


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


CALL = "import torch, bitdance_kernels as bk; bk.pack_signs(torch.randn(8))"


def test_environment_names_the_backend():
    failed = _python(CALL, BITDANCE_KERNELS_BACKEND="cuda")
    assert "BackendError: pack_signs: backend 'cuda' cannot run this call: " in failed.stderr
    assert _python(CALL, BITDANCE_KERNELS_BACKEND="reference").returncode == 0
    wrong = _python(CALL, BITDANCE_KERNELS_BACKEND="metal")
    assert "got 'metal' from BITDANCE_KERNELS_BACKEND" in wrong.stderr


@pytest.mark.parametrize("isa", cpu_isas())
def test_environment_limits_the_instruction_set(isa):
    code = "from bitdance_kernels._shared import native; print(native.cpu_isa())"
    assert _python(code, BITDANCE_KERNELS_CPU_ISA=isa).stdout.strip() == isa


def test_unknown_instruction_set_is_refused():
    code = CALL.replace("randn(8)", "randn(8), backend='cpu'")
    failed = _python(code, BITDANCE_KERNELS_CPU_ISA="mmx")
    assert failed.returncode != 0
    if cpu_isas():
        assert (
            "BITDANCE_KERNELS_CPU_ISA must be one of scalar, avx2, avx512, amx, got 'mmx'"
            in failed.stderr
        )


def test_import_is_light():
    """Neither Triton nor a native module is loaded before it is needed."""
    code = "import sys, bitdance_kernels; print([m for m in sys.modules if m in " + (
        "('triton', 'bitdance_kernels._cpu', 'bitdance_kernels._cuda')])"
    )
    without_torch = _python("import sys, torch; print('triton' in sys.modules)").stdout.strip()
    loaded = _python(code).stdout.strip()
    assert loaded == ("['triton']" if without_torch == "True" else "[]")


@pytest.mark.skipif(not cpu_isas(), reason="measures the C++ backend, which was not built")
def test_the_boundary_costs_at_most_10_us():
    """Boundary, checks and selection, beyond calling the backend.

    On a core that is slow, or that others share, the limit is 5 times the boundary alone, a PyTorch
    operator in Python that does nothing, at the same moment: 10 us on an idle core.
    """
    x, nothing = torch.randn(1, 8), torch.empty(1, dtype=torch.uint8)
    library = torch.library.Library("bitdance_test", "DEF")
    library.define("nothing(Tensor x, str backend) -> Tensor")
    library.impl("nothing", lambda x, backend: nothing, "CompositeExplicitAutograd")
    boundary_alone = torch.ops.bitdance_test.nothing.default
    calls = [
        lambda: pack_signs(x),
        lambda: pack_signs_cpu.run(x),
        lambda: boundary_alone(x, "auto"),
    ]
    timers = [timeit.Timer(call, timer=time.thread_time) for call in calls]
    over = []
    with torch.inference_mode():
        for timer in timers:
            timer.timeit(1000)
        for _ in range(200):  # of about a millisecond, so that all three run at one clock rate
            through, direct, alone = (timer.timeit(50) / 50 * 1e6 for timer in timers)
            over.append(through - direct - max(10, 5 * alone))
    assert statistics.median(over) <= 0


needs_signatures = pytest.mark.skipif(
    not cpu_isas(), reason="the C++ module, which tells calls apart, was not built"
)


@needs_signatures
def test_a_call_like_one_before_is_not_checked_again(monkeypatch, chosen):
    op, checked = REGISTRY["pack_signs"], []
    check = op._check
    monkeypatch.setattr(op, "_check", lambda x: (checked.append(x.shape), check(x)))
    for x in (torch.ones(2, 8), torch.zeros(2, 8), torch.ones(3, 8), torch.ones(2, 8)):
        assert torch.equal(pack_signs(x), pack_signs(x, backend="reference"))
    with pytest.raises(ValueError, match=r"pack_signs: x must be \[..., C\] with C a positive"):
        pack_signs(torch.ones(2, 7))
    with use_backend("reference"):
        pack_signs(torch.ones(2, 8))
    auto, refused = [[2, 8], [3, 8]], [[2, 7]]
    named, by_default = [[2, 8], [3, 8]], [[2, 8]]
    assert sorted(checked) == sorted(map(torch.Size, auto + refused + named + by_default))
    assert chosen == ["cpu", "reference"] * 4 + ["reference"]


@pytest.mark.parametrize("name", ["metal", "auto\0auto", "", None, ["cpu"], 1])
def test_what_is_no_backend_is_refused_each_time(name):
    for _ in range(2):
        pack_signs(torch.ones(2, 8))
        with pytest.raises(ValueError, match="pack_signs: backend must be one of auto, reference"):
            pack_signs(torch.ones(2, 8), backend=name)


@needs_signatures
def test_few_calls_are_remembered(monkeypatch):
    op = REGISTRY["pack_signs"]
    monkeypatch.setattr(op, "_chosen", {})
    for rows in range(1, 1000):
        pack_signs(torch.ones(rows, 8))
        assert 1 <= len(op._chosen) <= 256


def _signature(*arguments, gradients=fast_path.IGNORED, written=0):
    from bitdance_kernels._shared import native

    return native.cpu.signature(arguments, gradients, written)


@needs_signatures
def test_signatures_tell_apart_what_a_check_can_see():
    x = torch.randn(4, 6, 8)
    different = [
        (x,),
        (x, None),
        (x, x),
        (x[:2],),
        (x[:, :, ::2],),
        (x[..., :4],),
        (x[..., :4].contiguous(),),
        (x.transpose(0, 1),),
        (x.flatten(),),
        (x.flatten()[1:],),
        (x.flatten()[2:-1], 1),
        (x.flatten()[1:-2], 1),  # same size, other address
        (x.half(),),
        (x.bfloat16(),),
        (x.double(),),
        (x.int(),),
        (x.bool(),),
        *((x, value) for value in (0, 1, 0.0, 1.0, False, True, -1, 2**40)),
        *((x, dtype) for dtype in (torch.float32, torch.float16)),
    ]
    signatures = [_signature(*arguments) for arguments in different]
    assert None not in signatures
    assert len(set(signatures)) == len(different)
    again = [_signature(x.clone(), *rest) for x, *rest in different]
    alike = [x.stride() == x.clone().stride() and x.data_ptr() % 16 == 0 for x, *_ in different]
    assert sum(alike) > 20
    for first, second, is_alike in zip(signatures, again, alike, strict=True):
        assert (first == second) == is_alike
    assert _signature(torch.nn.Parameter(x)) == _signature(x)


class _Subclass(torch.Tensor):
    pass


class _Integer(int):
    pass


def _seen_by_vmap(x):
    seen = []
    torch.func.vmap(lambda row: (seen.append(row), row)[1])(x)
    return seen[0]


@needs_signatures
@pytest.mark.filterwarnings("ignore")  # sparse CSR and nested tensors: are in beta
@pytest.mark.parametrize(
    "make",
    [
        torch._neg_view,
        lambda x: torch._efficientzerotensor(4, 4),
        torch._to_functional_tensor,
        _seen_by_vmap,
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        torch.Tensor.to_mkldnn,
        lambda x: torch.nested.nested_tensor([x]),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        lambda x: x.to("meta"),
        lambda x: x[:0],
        lambda x: x.as_subclass(_Subclass),
        lambda x: 2**64,
        lambda x: _Integer(1),
        lambda x: "auto",
        lambda x: [1],
    ],
)
def test_what_is_not_known_through_and_through_has_no_signature(make):
    assert _signature(make(torch.randn(4, 4))) is None


@needs_signatures
def test_a_signature_refuses_or_tells_of_tensors_that_require_grad():
    x = torch.randn(4, 4, requires_grad=True)
    refused, noted = fast_path.REFUSED, fast_path.NOTED
    assert _signature(x, gradients=refused) is None
    assert _signature(x) == _signature(x.detach(), gradients=refused) == _signature(x.detach())
    given = [(x, x), (x, x.detach()), (x.detach(), x), (x.detach(), x.detach())]
    signatures = [_signature(*pair, gradients=noted) for pair in given]
    assert len(set(signatures)) == 4
    assert None not in signatures
    assert signatures[-1] == _signature(*given[-1])
    assert _signature(*[x.detach()] * 100) is None  # longer than the limit of a signature


def _negated(x):
    return torch._neg_view(-x)  # memory holds -x, with a pending negation


@pytest.mark.parametrize("make", [_negated, lambda x: x.as_subclass(_Subclass), torch.nn.Parameter])
def test_tensors_that_are_more_than_their_memory(make):
    """PyTorch resolves pending negations and subclasses, as for its own operators."""
    x = torch.randn(3, 16)
    with torch.no_grad():
        result = swiglu(make(x))
        expected = F.silu(make(x)[:, :8]) * make(x)[:, 8:]
    assert type(result) is (_Subclass if type(make(x)) is _Subclass else torch.Tensor)
    torch.testing.assert_close(result, expected)


class _Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class _FunctionNames(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("inference", [False, True])
def test_what_watches_pytorch_sees_the_op(inference):
    x = torch.randn(3, 16)
    with torch.inference_mode(inference):
        for mode in (_Names(), _FunctionNames()):
            with mode:
                swiglu(x)
            assert any("bitdance" in name and "swiglu" in name for name in mode.names)
        with torch.profiler.profile() as profile:
            swiglu(x)
        assert "bitdance::swiglu" in {event.name for event in profile.events()}


PRIVATE = [
    (torch._C, "_dispatch_tls_local_include_set"),
    (torch._C, "_dispatch_keys"),
    (torch._C, "_is_torch_function_mode_enabled"),
    (torch._C._autograd, "_profiler_enabled"),
    (torch._C, "_is_any_autocast_enabled"),
    (torch._C.DispatchKeySet, "raw_repr"),
]


def _reload():
    """Look for PyTorch's entries once more."""
    importlib.reload(fast_path)
    for name in ("are_plain", "is_autocast", "needs_dispatcher"):
        assert getattr(op_module, name)  # which it imports by name
        setattr(op_module, name, getattr(fast_path, name))


@pytest.fixture
def without_entry(request, monkeypatch):
    """PyTorch without one of the entries that the fast path reads."""
    with monkeypatch.context() as patched:
        patched.delattr(*request.param)
        _reload()
    yield
    _reload()
    assert not fast_path.needs_dispatcher()


def _every_way_of_calling():
    generator = torch.Generator().manual_seed(0)
    x, h = torch.randn(2, 3, 16, generator=generator)
    weight = torch.randn(8, 16, generator=generator)
    yield pack_signs(x)
    yield pack_signs(x, backend="reference")
    yield gated_residual(x, h, torch.tensor(0.5))  # expanded
    with torch.autocast("cpu"):
        yield linear(x, weight)
        yield pack_signs(x)
    leaf = x.clone().requires_grad_()
    result = adaln_norm(leaf, h, h)
    result.sum().backward()
    yield from (result.detach(), leaf.grad)
    yield torch.func.vmap(swiglu)(x)
    yield from torch.func.jvp(swiglu, (x,), (h,))
    yield swiglu(torch._neg_view(-x))
    yield swiglu(x.as_subclass(_Subclass)).as_subclass(torch.Tensor)
    qkv, cache = torch.randn(1, 1, 24, generator=generator), torch.zeros(2, 1, 4, 2, 4)
    lengths, angles = torch.zeros(1, dtype=torch.int32), torch.ones(4, 2, 2)
    yield rope_append(qkv, *cache, lengths, angles, num_heads=2)
    yield cache
    with torch.inference_mode():
        yield swiglu(x)


@pytest.mark.parametrize("without_entry", PRIVATE, ids=lambda entry: entry[1], indirect=True)
def test_results_where_pytorch_lacks_a_private_entry(without_entry, chosen):
    """Every call then crosses the dispatcher."""
    assert fast_path.needs_dispatcher()
    slow = list(_every_way_of_calling())
    with pytest.raises(RuntimeError, match="pack_signs: has no gradient, but x requires grad"):
        pack_signs(torch.ones(8, requires_grad=True))
    with pytest.raises(ValueError, match=r"pack_signs: x must be \[..., C\] with C a positive"):
        pack_signs(torch.ones(2, 7))
    assert explain(pack_signs, torch.ones(8))["reference"] is None
    assert REGISTRY["pack_signs"]._chosen == {}
    _reload()
    assert not fast_path.needs_dispatcher()
    for result, expected in zip(slow, _every_way_of_calling(), strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)
    assert REGISTRY["pack_signs"]._chosen or not cpu_isas()


def test_a_pytorch_without_dlpacks_c_interface():
    code = (
        "import torch; del torch.Tensor.__dlpack_c_exchange_api__; import bitdance_kernels as bk\n"
        "assert bk.pack_signs(torch.ones(2, 8)).tolist() == [[255], [255]]\n"
        "assert bk.CpuGraph.unavailable() == bk.explain(bk.pack_signs, torch.ones(8))['cpu']\n"
        "import numpy, bitdance_kernels.binary.numpy as front\n"
        "assert front.pack_signs(numpy.ones((2, 8), 'float32')).tolist() == [[255], [255]]\n"
        "bk.pack_signs(torch.ones(8), backend='cpu')"
    )
    failed = _python(code)
    assert "BackendError: pack_signs: backend 'cpu' cannot run this call: " in failed.stderr
    assert "does not offer its tensors by DLPack's C interface" in failed.stderr


def test_a_trace_has_the_op_in_it():
    x = torch.randn(3, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated but still used
        traced = torch.jit.trace(lambda h: swiglu(h), x)
    assert "bitdance::swiglu" in str(traced.graph)
    torch.testing.assert_close(traced(2 * x), swiglu(2 * x))


def test_every_op_is_registered_under_its_name():
    for name, op in REGISTRY.items():
        assert isinstance(op, KernelOp)
        assert op.name == name
        assert hasattr(torch.ops.bitdance, name)
        for order in op.order.values():
            assert "reference" in order  # so that auto always finds one
