"""Products and attention behave under autocast as F.linear and scaled_dot_product_attention."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

import bitdance_kernels as bk
from bitdance_kernels._dispatch.op import REGISTRY
from tests.cases import all_cases

CASES = all_cases()
HALF = torch.bfloat16


def _rand(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


X, W, B = _rand(3, 4, 16), _rand(24, 16), _rand(24)
Q, K = _rand(2, 7, 4, 16), _rand(2, 7, 2, 16)
RANGES = bk.block_causal_ranges(3, 2, 2)
LENGTHS = torch.tensor([7, 3], dtype=torch.int32)
FLOAT8 = bk.quantize_rows(W)
PACKED = bk.pack_signs(_rand(5, 16))
TABLE, STEP = bk.denoise_schedule(3)[0], torch.tensor([1])
STREAM, X0 = _rand(3, 4, 24), _rand(3, 4, 8)
STATE, KEYS = _rand(3, 4, 8), bk.noise_keys([1, 2, 3], [0, 0, 0], stream=0)


# By op: a function of the tensors that are cast, those tensors, and the results in the dtype of
# autocast (None: all).
PRODUCTS = {
    "linear": (bk.linear, (X, W, B), None),
    "linear_fp8": (lambda x, b: bk.linear_fp8(x, *FLOAT8, b), (X, B), None),
    "packed_linear": (lambda w, b: bk.packed_linear(PACKED, w, b), (W, B), None),
    "adaln_linear": (lambda x, w, b: bk.adaln_linear(x, X, X, w, b), (X, W, B), None),
    "adaln_linear_swiglu": (
        lambda x, w, b: bk.adaln_linear_swiglu(x, X, X, w, b), (X, W, B), None
    ),
    "linear_swiglu": (bk.linear_swiglu, (X, W, B), None),
    # The stream that it adds to keeps its dtype, as by F.linear and gated_residual.
    "linear_gated_residual": (
        lambda x, w, b: bk.linear_gated_residual(x, w, b, STREAM, STREAM),
        (X, W, B), (),
    ),
    "linear_gated_residual_moments": (
        lambda x, w, b: bk.linear_gated_residual(
            x, w, b, STREAM[..., :16], return_moments=True
        ),
        (X, _rand(16, 16), _rand(16)), (),
    ),
    "patch_attention": (lambda qkv: bk.patch_attention(qkv, 2), (_rand(3, 4, 24),), None),
    "block_causal_attention": (
        lambda q, k, v: bk.block_causal_attention(q, k, v, RANGES), (Q, K, K + 1), None
    ),
    "block_decode_attention": (
        lambda q, k, v: bk.block_decode_attention(q, k, v, LENGTHS), (Q, K, K + 1), None
    ),
    "conv3x3": (
        bk.conv3x3,
        (_rand(2, 8, 3, 5), _rand(16, 8, 3, 3), _rand(16), _rand(2, 16, 3, 5)), None,
    ),
    "rms_norm_linear": (bk.rms_norm_linear, (X, W, B), None),
    "rms_norm_linear_swiglu": (bk.rms_norm_linear_swiglu, (X, W, B), None),
    "denoise_step_linear": (
        lambda w, b: bk.denoise_step_linear(STATE, X0, TABLE, STEP, w, b, keys=KEYS),
        (_rand(16, 8), _rand(16)), (1,),
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", PRODUCTS)


def _mixed(tensors, turn=0):
    """Alternately float32 and the other dtype."""
    return tuple(t if (i + turn) % 2 else t.to(HALF) for i, t in enumerate(tensors))


def _leaves(result):
    return pytree.tree_leaves(result)


def _equal(a, b):
    for x, y in zip(_leaves(a), _leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_every_product_and_attention_is_in_the_table():
    assert set(PRODUCTS) == {name for name, op in REGISTRY.items() if op._cast}
    assert all(len(PRODUCTS[name][1]) == len(REGISTRY[name]._cast) for name in PRODUCTS)


@EVERY
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_results_are_those_of_inputs_cast_to_the_dtype_of_autocast(name, half):
    function, tensors, cast = PRODUCTS[name]
    expected = _leaves(function(*(t.to(half) for t in tensors)))
    with torch.autocast("cpu", half):
        results = [function(*tensors), function(*_mixed(tensors, 0)), function(*_mixed(tensors, 1))]
    for i in range(len(expected)) if cast is None else cast:
        assert {_leaves(result)[i].dtype for result in results} == {half}
    _equal(results[0], expected)
    if half is HALF:
        _equal(results[1], expected)
        _equal(results[2], expected)
    # Nor does a call outside of autocast with the same signature behave as one inside.
    assert {t.dtype for t in _leaves(function(*tensors))} == {torch.float32}


@pytest.mark.parametrize("name", [name for name in PRODUCTS if len(PRODUCTS[name][1]) > 1])
def test_mixed_dtypes_stay_an_error_outside_of_autocast(name):
    function, tensors, _ = PRODUCTS[name]
    for turn in (0, 1):
        mixed = _mixed(tensors, turn)
        with pytest.raises(
            TypeError, match=f"^{REGISTRY[name].called}: .* must be (float32|bfloat16), got"
        ):
            function(*mixed)
        with (
            torch.autocast("cpu", HALF),
            torch.autocast("cpu", enabled=False),
            pytest.raises(TypeError, match=f"^{REGISTRY[name].called}: "),
        ):
            function(*mixed)


@EVERY
def test_float64_is_not_cast(name):
    function, tensors, _ = PRODUCTS[name]
    wide = tuple(t.double() for t in tensors)
    with torch.autocast("cpu", HALF):
        _equal(function(*wide), _outside(function, wide))
        if len(tensors) > 1:
            with pytest.raises(TypeError, match=f"^{REGISTRY[name].called}: "):
                function(wide[0], *tensors[1:])
    with torch.autocast("cpu", HALF), pytest.raises(RuntimeError, match="same dtype"):
        F.linear(X.double(), W)  # as PyTorch does


def _outside(function, arguments):
    with torch.autocast("cpu", enabled=False):
        return function(*arguments)


DIFFERENTIABLE = [name for name in PRODUCTS if REGISTRY[name].differentiable]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_come_back_in_the_dtypes_of_the_inputs(name):
    function, tensors, _ = PRODUCTS[name]
    leaves = [t.clone().requires_grad_() for t in _mixed(tensors)]
    with torch.autocast("cpu", HALF):
        result = function(*leaves)
    weights = _rand(*result.shape).to(HALF)
    grads = torch.autograd.grad(result, leaves, weights)
    assert [g.dtype for g in grads] == [t.dtype for t in leaves]
    halves = [t.detach().to(HALF).requires_grad_() for t in tensors]
    expected = torch.autograd.grad(function(*halves), halves, weights)
    _equal([g.to(HALF) for g in grads], expected)
    with torch.autocast("cpu", HALF):  # a backward pass inside of it, too
        inside = torch.autograd.grad(function(*leaves), leaves, weights)
    _equal(inside, grads)


def test_out_takes_no_part_as_with_pytorchs_own_functions():
    out, theirs = torch.empty(4, 24), torch.empty(4, 24)
    with torch.autocast("cpu", HALF):
        assert bk.linear(X[0], W, B, out=out) is out
        torch.mm(X[0], W.t(), out=theirs)
        with pytest.raises(TypeError, match="linear: weight must be bfloat16, got float32"):
            bk.linear(X[0].to(HALF), W, B, out=out)
        with pytest.raises(RuntimeError):
            torch.mm(X[0].to(HALF), W.t(), out=theirs)
    _equal(out, bk.linear(X[0], W, B))
    torch.testing.assert_close(out, theirs + B)


@EVERY
def test_compiled_it_agrees(name):
    function, tensors, _ = PRODUCTS[name]

    @torch.no_grad()
    def under(*arguments):
        with torch.autocast("cpu", HALF):
            return function(*arguments)

    torch._dynamo.reset()
    compiled = torch.compile(under, fullgraph=True, backend="aot_eager")
    _equal(compiled(*_mixed(tensors)), under(*_mixed(tensors)))


def test_compiled_training_agrees():
    leaves = [t.clone().requires_grad_() for t in (X, W, B)]
    loss = torch.compile(
        lambda x, w, b: bk.linear(x, w, b).float().square().sum(),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    with torch.autocast("cpu", HALF):
        ours = torch.autograd.grad(loss(*leaves), leaves)
        eager = torch.autograd.grad(F.linear(*leaves).float().square().sum(), leaves)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_on_a_card_it_is_the_cards_autocast_that_counts():
    """With tensors that only pretend to be on a card."""
    with FakeTensorMode(), torch.no_grad():
        x, weight = (torch.empty(t.shape, device="cuda") for t in (X, W))
        with torch.autocast("cpu", HALF):
            assert bk.linear(x, weight).dtype == torch.float32
        enabled = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", HALF)
        try:
            for function in (bk.linear, F.linear):
                assert function(x.to(HALF), weight).dtype == HALF
                assert function(x.to("cpu"), weight.to("cpu")).dtype == torch.float32
        finally:
            torch.set_autocast_enabled("cuda", enabled[0])
            torch.set_autocast_dtype("cuda", enabled[1])


OTHERS = [case for case in CASES.values() if not case.kernel_op._cast and not case.mutates]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_other_ops_compute_what_they_do_outside(case):
    """Their references too, although these call functions that autocast casts."""
    call = next(c for c in case.samples(torch.device("cpu")) if all(t.numel() for t in c.tensors()))
    with torch.no_grad():
        for backend in ("auto", "reference"):
            expected = case.op(*call.args, **call.kwargs, backend=backend)
            with torch.autocast("cpu", HALF):
                found = case.op(*call.args, **call.kwargs, backend=backend)
            for a, b in zip(_leaves(found), _leaves(expected), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
