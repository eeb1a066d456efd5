"""Arguments of kinds that no op takes: one clear error that names op and argument.

An op joins by its schema and its case.
"""

import inspect
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

import bitdance_kernels as bk
from bitdance_kernels._dispatch.op import REGISTRY, KernelOp
from tests.cases import all_cases

CPU = torch.device("cpu")
CASES = all_cases()
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
ERRORS = (TypeError, ValueError)


class _Subclass(torch.Tensor):
    pass


def _call(case):
    """The smallest sample that has elements."""
    calls = [call for call in case.samples(CPU) if all(t.numel() for t in call.tensors())]
    return min(calls, key=lambda call: sum(t.numel() for t in call.tensors())).map(torch.clone)


def _places(case, call, kind):
    """Names of the arguments of a kind, each with the call that has another value there."""
    bound = inspect.signature(case.op).bind(*call.args, **call.kwargs).arguments
    for name, value in bound.items():
        leaves, spec = pytree.tree_flatten(value)
        for i in (i for i, leaf in enumerate(leaves) if type(leaf) is kind):

            def replaced(value, name=name, leaves=leaves, spec=spec, i=i):
                fresh = call.map(torch.clone)
                given = [t.clone() if isinstance(t, torch.Tensor) else t for t in leaves]
                given[i] = value(given[i]) if callable(value) else value
                given = {**inspect.signature(case.op).bind(*fresh.args, **fresh.kwargs).arguments,
                         name: pytree.tree_unflatten(given, spec)}  # fmt: skip
                return lambda **options: case.op(**given, **options)

            yield name, replaced


@pytest.fixture
def never_launched(monkeypatch):
    def launched(self, *_):
        pytest.fail(f"{self.name} went on to a backend")

    monkeypatch.setattr(KernelOp, "select", launched)
    monkeypatch.setattr(KernelOp, "_run_on", launched)


def _refuses(case, name, call, error=ERRORS, match=""):
    for backend in ("auto", "reference", "cpu"):
        with pytest.raises(error) as caught:
            call(backend=backend)
        message = str(caught.value)
        assert re.match(rf"{case.name}: ({name}|uniforms|ranges|noise or keys)", message), message
        assert re.search(match, message), message
        assert "\n" not in message


@EVERY
@pytest.mark.usefixtures("never_launched")
def test_what_is_no_tensor(case):
    wrong = {
        "numpy.ndarray": lambda t: t.float().numpy(),
        "list": lambda t: t.tolist(),
        "int": 3,
        "str": "x",
        "builtin": torch.zeros,
    }
    for name, replaced in _places(case, _call(case), torch.Tensor):
        for kind, value in wrong.items():
            if name in ("step", "seed", "offset", "cfg") and kind in ("int", "list"):
                continue  # it may be a number
            call = replaced(value if kind != "builtin" else lambda _: torch.zeros)
            _refuses(case, name, call, TypeError, "must be ")
        if inspect.signature(case.op).parameters[name].default is inspect.Parameter.empty:
            _refuses(case, name, replaced(None), TypeError, "must be .*None|must be .*NoneType")


@pytest.mark.parametrize("op", [bk.pack_signs, bk.unpack_signs])
def test_an_array_gets_the_way_to_the_numpy_front(op):
    array = np.ones((2, 8), np.float32 if op is bk.pack_signs else np.uint8)
    front = rf"got numpy.ndarray; bitdance_kernels.binary.numpy.{op.__name__} takes arrays"
    with pytest.raises(TypeError, match=front):
        op(array)
    with pytest.raises(TypeError, match=r"swiglu: h must .* numpy.ndarray; torch.from_numpy"):
        bk.swiglu(array)


@pytest.mark.parametrize("value", [[1.0], None, 3, torch.ones(8)])
def test_what_is_no_array_at_the_numpy_front(value):
    from bitdance_kernels.binary import numpy as front

    hint = "; bitdance_kernels.pack_signs takes tensors" if isinstance(value, torch.Tensor) else ""
    with pytest.raises(TypeError, match=rf"pack_signs: x must be a numpy.ndarray, got .*{hint}$"):
        front.pack_signs(value)
    with pytest.raises(TypeError, match=r"unpack_signs: packed must be a numpy.ndarray, got "):
        front.unpack_signs(value)


def test_arguments_of_functions_that_are_no_ops():
    keys = bk.noise_keys(np.int64(3), np.arange(2), ar_step=np.int32(1))
    assert torch.equal(keys, bk.noise_keys(3, range(2), ar_step=1))
    for call, message in (
        (lambda: bk.noise(keys.numpy(), 0, 4), "noise: keys must be a torch.Tensor, got numpy"),
        (lambda: bk.noise(None, 0, 4), "noise: keys must be a torch.Tensor, got None"),
        (lambda: bk.noise(keys, True, 4), "noise: step must be an integer, got True"),
        (lambda: bk.noise(keys, 0, 4.0), "noise: elements must be an integer, got 4.0"),
        (lambda: bk.noise_keys(True, [0]), "noise_keys: seeds must be int, got bool"),
        (lambda: bk.noise_keys(None, [0]), "noise_keys: seeds must be a list, got NoneType"),
        (lambda: bk.noise_keys(0, 3), "noise_keys: sample_ids must be a list, got int"),
        (lambda: bk.noise_keys(0, [0], stream=0.0), "noise_keys: stream must be int, got float"),
        (lambda: bk.denoise_schedule(True), "denoise_schedule: steps must be int, got bool"),
        (
            lambda: bk.denoise_schedule(2, time_shift="1"),
            "denoise_schedule: time_shift must be a number",
        ),
        (lambda: bk.dense_mask(keys), "dense_mask: ranges must be Ranges, got Tensor"),
        (lambda: bk.Ranges(np.zeros(2, np.int32), keys), "Ranges: start must be an int32 tensor"),
    ):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
            call()
    for backend in ("auto", "reference"):
        with pytest.raises(ValueError, match="noise: keys must be a tensor whose storage holds"):
            bk.noise(_freed_behind_its_start(keys), 0, 4, backend=backend)
    assert torch.equal(bk.denoise_schedule(np.int64(3))[0], bk.denoise_schedule(3)[0])


@EVERY
@pytest.mark.usefixtures("never_launched")
def test_numbers_of_other_kinds(case):
    wrong = {
        int: [True, 1.5, "a", None, [1], 1j, 2**63, -(2**63) - 1, torch.tensor(1)],
        float: [True, "a", None, [1], 1j, float("nan"), float("inf"), 10**400, torch.tensor(1.0)],
        bool: [0, 1, 2**64, "a", None, 0.5],
        torch.dtype: ["float32", None, 1, float],
    }
    optional = inspect.signature(case.op).parameters
    for kind, values in wrong.items():
        for name, replaced in _places(case, _call(case), kind):
            for value in values:
                if value is None and optional[name].default is None:
                    continue
                if isinstance(value, torch.Tensor) and name in ("step", "seed", "offset", "cfg"):
                    continue
                if kind is int and type(value) is int and name == "seed":
                    continue  # seeds are unsigned 64-bit integers
                fixed = value if not isinstance(value, type) else (lambda _, v=value: v)
                _refuses(case, name, replaced(fixed))


@EVERY
def test_numbers_of_numpy_are_numbers(case):
    makers = {
        int: lambda n: np.int64(n) if n < 2**63 else np.uint64(n),
        float: np.float64,
        bool: np.bool_,
    }
    call = _call(case)
    for kind, make in makers.items():
        for _, replaced in _places(case, call, kind):
            expected = pytree.tree_leaves(replaced(lambda value: value)())
            for a, b in zip(pytree.tree_leaves(replaced(make)()), expected, strict=True):
                if isinstance(a, torch.Tensor):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@EVERY
def test_a_backend_that_is_no_name(case):
    call = _call(case)
    for backend in (None, 1, b"cpu", ["cpu"], "gpu"):
        with pytest.raises(ValueError, match=rf"{case.name}: backend must be one of auto"):
            case.op(*call.args, **call.kwargs, backend=backend)


def _freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def _freed_behind_its_start(tensor):
    """Leaves an address that is aligned like an allocation."""
    first = 64 // tensor.element_size()
    wide = tensor.new_zeros(first + tensor.numel())
    view = wide[first:].view(tensor.shape)
    wide.untyped_storage().resize_(0)
    return view


@EVERY
def test_a_freed_storage_is_refused(case):
    """As FSDP leaves them; also after an equal valid call, and with gradients."""
    call = _call(case)
    for name, replaced in _places(case, call, torch.Tensor):
        replaced(lambda t: t)()
        for free in (_freed, _freed_behind_its_start):
            _refuses(case, f"{name}|key", replaced(free), ValueError, "must be a tensor whose stor")
            with torch.no_grad():
                _refuses(case, f"{name}|key", replaced(free), ValueError, "must be a tensor whose")


@EVERY
@pytest.mark.filterwarnings("ignore")  # sparse CSR and nested tensors: are in beta
def test_tensors_without_dense_memory_are_refused(case):
    for name, replaced in _places(case, _call(case), torch.Tensor):
        for make in (
            torch.Tensor.to_sparse,
            lambda t: torch.nested.nested_tensor([t]),
            lambda t: torch.nested.nested_tensor([t[None]], layout=torch.jagged),
            lambda t: t.to(torch.complex64),
            lambda t: t.float().to(torch.float8_e4m3fn),
            lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        ):
            call = replaced(make)
            _refuses(case, f"{name}|x|the input", call, (*ERRORS, RuntimeError))


@EVERY
def test_subclasses_and_views_that_pytorch_resolves(case):
    call = _call(case)
    expected = pytree.tree_leaves(case.op(*call.map(torch.clone).args, **call.kwargs))
    ways = [lambda t: t.as_subclass(_Subclass)]
    ways.append(lambda t: torch._neg_view(-t) if t.is_floating_point() else t)
    for way in ways:
        written = {id(call.args[i]) for i in case.mutates}
        given = call.map(lambda t, way=way, written=written: (
            t.clone() if id(t) in written else way(t.clone())))  # fmt: skip
        for a, b in zip(
            pytree.tree_leaves(case.op(*given.args, **given.kwargs)), expected, strict=True
        ):
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(
                    a.as_subclass(torch.Tensor), b, rtol=0, atol=0, equal_nan=True
                )


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("tokens", [5, 160])  # on the CPU more than 128 are the reference's
def test_ranges_that_nobody_checked_stay_within_the_keys(tokens, backend):
    q, k, v = torch.randn(3, 1, tokens, 2, 8).unbind()
    start = torch.full((tokens,), -(2**31), dtype=torch.int32)
    end = torch.full((tokens,), 2**31 - 1, dtype=torch.int32)
    out = bk.block_causal_attention(q, k, v, bk.Ranges(start, end, validate=False), backend=backend)
    heads = [t.transpose(1, 2) for t in (q, k, v)]
    torch.testing.assert_close(out, F.scaled_dot_product_attention(*heads).transpose(1, 2))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_indices_out_of_range_name_the_op(backend):
    table, x = bk.denoise_schedule(3)[0], torch.randn(2, 8)
    caches = torch.zeros(2, 1, 4, 1, 4).unbind()
    for bad in (-1, 4, -(2**31), 2**31 - 1):
        index = torch.tensor([bad], dtype=torch.int32)
        with pytest.raises(IndexError, match="denoise_step: index out of range"):
            bk.denoise_step(x, x, table, index, noise=x, backend=backend)
        with pytest.raises(IndexError, match="rope_append: index out of range"):
            bk.rope_append(torch.ones(1, 1, 12), *caches, index, torch.ones(9, 2, 2), num_heads=1,
                           backend=backend)  # fmt: skip
    assert not any(cache.any() for cache in caches)


def test_what_is_written_is_no_view_to_be_negated():
    out = torch._neg_view(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="linear: out must be memory to write to, got a view"):
        bk.linear(torch.ones(2, 4), torch.ones(3, 4), out=out)
    zero = torch._efficientzerotensor(2, 3)
    with pytest.raises(ValueError, match="linear: out must be memory to write to, got a zero"):
        bk.linear(torch.ones(2, 4), torch.ones(3, 4), out=zero)


MODULATED = [case for case in CASES.values() if case.kernel_op._broadcast]


@pytest.mark.parametrize("case", MODULATED, ids=lambda case: case.name)
def test_modulation_broadcasts(case):
    """Broadcasts as in PyTorch, with gradients of its own shape; again by its signature."""
    op = case.kernel_op
    calls = [c for c in case.samples(CPU) if all(t.numel() for t in c.tensors())]
    names = [op._argument_names[i] for i, _, _ in op._broadcast]
    for call in calls:
        bound = inspect.signature(case.op).bind(*call.args, **call.kwargs)
        bound.apply_defaults()
        given = [n for n in names if bound.arguments[n] is not None]
        if not given or bound.arguments[given[0]].dim() < 2:
            continue
        for shape_of in (lambda t: t[:1], lambda t: t[(0,) * (t.dim() - 1)], lambda t: t[..., :1]):
            for name in given:
                full = bound.arguments[name]
                small = shape_of(full).clone()
                arguments = {**bound.arguments, name: small}
                expanded = {**bound.arguments, name: small.expand(full.shape)}
                _same_with_gradient(case, name, arguments, expanded, call)
        return
    pytest.fail("no sample of two dimensions")


def _same_with_gradient(case, name, arguments, expanded, call):
    for _ in range(2):
        with torch.no_grad():
            results = [pytree.tree_leaves(case.op(**a)) for a in (arguments, expanded)]
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    if case.kernel_op.differentiable:
        gradients = []
        for given in (arguments, expanded):
            leaf = arguments[name].detach().clone().requires_grad_()
            value = leaf if given is arguments else leaf.expand(given[name].shape)
            outs = pytree.tree_leaves(case.op(**{**given, name: value}))
            (gradient,) = torch.autograd.grad(sum(o.float().square().sum() for o in outs), leaf)
            gradients.append(gradient)
        assert gradients[0].shape == arguments[name].shape
        torch.testing.assert_close(*gradients)


def test_modulation_of_images_for_tokens():
    """[B, 1, C] beside [B, T, C]: the value and gradients of the formula."""
    x, scale, shift = torch.randn(2, 3, 8), torch.randn(2, 1, 8), torch.randn(8)
    leaves = [t.requires_grad_() for t in (x, scale, shift)]
    y = bk.adaln_norm(*leaves)
    expected = F.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad((y * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"scale must .* one that broadcasts to it, got \[2, 8\]"):
        bk.adaln_norm(x, scale[:, 0], shift)


def test_the_order_of_the_schema_is_that_of_the_function():
    """Messages then name arguments as callers know them."""
    for case in CASES.values():
        parameters = list(inspect.signature(case.op).parameters)
        for name in case.kernel_op._argument_names:
            known = name in parameters or name == "key" or name.partition("[")[0] in parameters
            assert known or name.partition(".")[0] in parameters, name
    assert all(len(op._arguments) <= 64 for op in REGISTRY.values())  # limit of a signature
