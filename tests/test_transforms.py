"""Every op under tangents, torch.func and second derivatives.

Right values, or an error that names the op; an op joins by its package and its case.
"""

import functools
import warnings

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils import _pytree as pytree

import bitdance_kernels as bk
from bitdance_kernels import BackendError, use_backend
from bitdance_kernels._dispatch.op import REGISTRY
from tests.calls import dual_level, function_of, like, own, recorded
from tests.cases import all_cases

CPU = torch.device("cpu")
CASES = all_cases()
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
DIFFERENTIABLE = [case for case in CASES.values() if case.kernel_op.differentiable]
OTHERS = [case for case in CASES.values() if not case.kernel_op.differentiable]
EVERY_DIFFERENTIABLE = pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.name)
EVERY_OTHER = pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
# Ops that define the derivative of another function as theirs.
STRAIGHT_THROUGH = {"lfq_quantize", "lfq_quantize_commitment"}


def _call(case, dtype=torch.float64):
    """The smallest sample that has elements, in `dtype`."""
    calls = [call for call in case.samples(CPU) if all(t.numel() for t in call.tensors())]
    call = min(calls, key=lambda call: sum(t.numel() for t in call.tensors()))
    return own(call, dtype)


def _pullback(function, primals, cotangents):
    """Gradients by the op's own backward pass, to compare all others with."""
    leaves = [p.detach().clone().requires_grad_() for p in primals]
    return torch.autograd.grad(function(*leaves), leaves, cotangents)


def _dot(a, b):
    return sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True))


def _close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4, check_dtype=False)


@pytest.mark.parametrize("way", [dual_level, jvp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EVERY_DIFFERENTIABLE
def test_forward_mode_is_the_transpose_of_the_backward_pass(case, dtype, way):
    function, primals = function_of(case, _call(case, dtype))
    tangents, expected = like(primals), function(*primals)
    cotangents = like(expected)
    actual, pushed = way(function, primals, tangents)
    _close(actual, expected)
    _close(_dot(pushed, cotangents), _dot(tangents, _pullback(function, primals, cotangents)))


@EVERY_DIFFERENTIABLE
def test_torch_func_gives_the_gradients_of_the_backward_pass(case):
    function, primals = function_of(case, _call(case, torch.float32))
    expected, pull = vjp(function, *primals)
    cotangents = like(expected)
    gradients = _pullback(function, primals, cotangents)
    _close(pull(cotangents), gradients)
    _close(function(*primals), expected)

    def loss(*tensors):
        return _dot(function(*tensors), cotangents)

    _close(grad(loss, argnums=tuple(range(len(primals))))(*primals), gradients)
    torch._dynamo.reset()
    compiled = torch.compile(grad(loss), backend="aot_eager", fullgraph=True)
    _close(compiled(*primals), gradients[0])


@EVERY_DIFFERENTIABLE
def test_gradients_for_each_sample(case):
    function, primals = function_of(case, _call(case, torch.float32))
    batches = tuple(torch.stack((p, p.flip(0) * 0.5)) for p in primals)
    cotangents = like(function(*primals))

    def loss(*tensors):
        return _dot(function(*tensors), cotangents)

    every = tuple(range(len(primals)))
    each = [_pullback(function, sample, cotangents) for sample in zip(*batches, strict=True)]
    stacked = [torch.stack(gradients) for gradients in zip(*each, strict=True)]
    _close(vmap(grad(loss, argnums=every))(*batches), tuple(stacked))
    _close(grad(lambda *b: vmap(loss)(*b).sum(), argnums=every)(*batches), tuple(stacked))
    leaves = [batch.clone().requires_grad_() for batch in batches]
    _close(torch.autograd.grad(vmap(loss)(*leaves).sum(), leaves), tuple(stacked))


@EVERY
def test_vmap_is_the_loop_over_its_samples(case):
    call = _call(case, torch.float32)
    leaves, spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
    batched = {
        i: torch.stack((leaf, leaf.flip(0), leaf))
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor)
        and (leaf.is_floating_point() or leaf.dtype == torch.uint8)
    }
    ours = {i: t for i, t in batched.items() if t.dim() > 1}

    def function(*tensors):
        given = list(leaves)
        for i, tensor in zip(ours, tensors, strict=True):
            given[i] = tensor
        args, kwargs = pytree.tree_unflatten(given, spec)
        out = case.op(*args, **kwargs)
        return pytree.tree_leaves((out, [args[i] for i in case.mutates]))

    each = [function(*(t[n].clone() for t in ours.values())) for n in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch's fallback, a loop, warns that it is one
        together = vmap(function, randomness="error")(*(t.clone() for t in ours.values()))
    for n, outs in enumerate(each):
        for mapped, out in zip(together, outs, strict=True):
            _close(mapped[n], out) if out.is_floating_point() else torch.equal(mapped[n], out)
            assert mapped[n].dtype == out.dtype


@EVERY_DIFFERENTIABLE
def test_second_derivatives(case):
    """Second derivatives need the reference, requested by name."""
    function, primals = function_of(case, _call(case), backend="reference")
    if case.name in STRAIGHT_THROUGH:
        leaves = [p.clone().requires_grad_() for p in primals]
        first = torch.autograd.grad(
            sum(out.square().sum() for out in function(*leaves)), leaves, create_graph=True
        )
        again = torch.autograd.grad(first[0].sum(), leaves)[0]
        count = primals[0].numel()
        # d/dx of x^2 twice, straight through; and of the mean of (x - sign)^2, squared.
        x = primals[0]
        distance = x - ((x > 0).double() * 2 - 1)
        commitment = distance.square().mean()
        grad_commitment = 4 / count * (2 / count * distance.sum() * distance + commitment)
        expected = 2 + (grad_commitment if case.name.endswith("commitment") else 0)
        _close(again, expected * torch.ones_like(x))
        return
    for p in primals:
        p.requires_grad_()
    assert torch.autograd.gradgradcheck(function, primals, fast_mode=True)


@EVERY_DIFFERENTIABLE
def test_second_derivatives_are_refused_by_the_kernels(case):
    if case.name in STRAIGHT_THROUGH | {"linear"}:
        return  # its backward pass consists of PyTorch operators
    function, primals = function_of(case, _call(case, torch.float32))
    leaves = [p.requires_grad_() for p in primals]
    total = sum(t.square().sum() for t in function(*leaves))
    with pytest.raises(RuntimeError, match=rf"{case.name}_backward: .* backend=.reference."):
        torch.autograd.grad(total, leaves, create_graph=True)


@EVERY_DIFFERENTIABLE
def test_gradients_of_many_cotangents_at_once(case):
    """``is_grads_batched``, for jacobians: vmap over the backward pass."""
    function, primals = function_of(case, _call(case, torch.float32))
    leaves = [p.clone().requires_grad_() for p in primals]
    outs = function(*leaves)
    cotangents = tuple(torch.randn(3, *out.shape, dtype=out.dtype) for out in outs)
    together = torch.autograd.grad(
        outs, leaves, cotangents, is_grads_batched=True, retain_graph=True
    )
    for n in range(3):
        alone = torch.autograd.grad(outs, leaves, [c[n] for c in cotangents], retain_graph=True)
        _close([t[n] for t in together], list(alone))


def test_jacobians_and_hessians():
    h = torch.randn(2, 6, dtype=torch.float64)

    def plain(x):
        return torch.nn.functional.silu(x[..., :3]) * x[..., 3:]

    for transform in (
        jacfwd,
        jacrev,
        torch.func.hessian,
        lambda f: jacfwd(jacfwd(f)),
        lambda f: torch.func.grad_and_value(lambda x: f(x).square().sum()),
        lambda f: lambda x: torch.func.linearize(f, x)[1](x),
    ):
        torch.testing.assert_close(transform(bk.swiglu)(h), transform(plain)(h))


@EVERY_OTHER
def test_what_has_no_derivative_says_so(case):
    """The op is named in the error, however the derivative is requested."""
    call = _call(case, torch.float32)
    function, primals = function_of(case, call)
    if not primals:
        return  # it has bits only
    tangents = like(primals)
    stacked = tuple(torch.stack((p, p)) for p in primals)
    pushes = (tuple(map(torch.ones_like, stacked)),)

    def total(*tensors):
        return sum(out.sum() for out in function(*tensors)) + 0 * primals[0].sum()

    asked = [
        lambda: grad(total)(*primals),
        lambda: vjp(total, *primals),
        lambda: vmap(grad(total))(*stacked),
        lambda: grad(lambda *b: vmap(total)(*b).sum())(*stacked),
        lambda: dual_level(function, primals, tangents),
        lambda: jvp(total, primals, tangents),
        lambda: jvp(lambda *b: vmap(total)(*b), stacked, *pushes),
        lambda: vmap(lambda *p: jvp(total, p, p))(*stacked),
        lambda: total(*(p.clone().requires_grad_() for p in primals)),
    ]
    for ask in asked:
        with pytest.raises(RuntimeError, match=f"{case.name}: has no (gradient|forward-mode)"):
            ask()
    with fwAD.dual_level():  # a detached tensor has no tangent
        function(*(fwAD.make_dual(p, t).detach() for p, t in zip(primals, tangents, strict=True)))


@EVERY
def test_tangents_are_not_lost_below_the_public_function(case):
    """``torch.ops.bitdance``, and what a compiled graph calls, have no forward mode and say so."""
    for func, args in recorded(case, _call(case, torch.float32)):
        at = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
        for i in (i for i in at if args[i].is_floating_point()):
            given = list(args)
            with fwAD.dual_level():
                given[i] = fwAD.make_dual(args[i], torch.ones_like(args[i]))
                with pytest.raises(RuntimeError, match=r"has no forward-mode .* carries a tangent"):
                    func(*given)


@EVERY_DIFFERENTIABLE
def test_torch_ops_are_transformed_like_the_public_function(case):
    for func, args in recorded(case, _call(case, torch.float32)):

        def total(tensor, func=func, args=args):
            outs = func(tensor, *args[1:])
            return sum(t.double().square().sum() for t in pytree.tree_leaves(outs)
                       if t.is_floating_point() and t.isfinite().all())  # fmt: skip

        if args[0].is_floating_point():
            leaf = args[0].clone().requires_grad_()
            expected = torch.autograd.grad(total(leaf), leaf)[0]
            if func._schema.name != "bitdance::block_causal_attention":  # whose second is constant
                _close(grad(total)(args[0]), expected)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_named_backend_is_not_left_for_the_reference(backend):
    h = torch.randn(2, 8)
    message = f"swiglu: backend '{backend}' cannot run this call: torch.func and forward"
    with use_backend(backend), pytest.raises(BackendError, match=message):
        jvp(bk.swiglu, (h,), (h,))
    with pytest.raises(BackendError, match=message):
        vmap(functools.partial(bk.swiglu, backend=backend))(h)
    with use_backend("reference"):
        _close(vmap(bk.swiglu)(h), bk.swiglu(h))
    with pytest.raises(ValueError, match="swiglu: backend must be one of auto"):
        vmap(functools.partial(bk.swiglu, backend="gpu"))(h)


def test_explain_under_a_transform(capsys):
    reasons = vmap(lambda h: (bk.explain(bk.swiglu, h), h)[0] and h)(torch.randn(2, 8))
    assert reasons.shape == (2, 8)
    assert "reference  yes  <- auto takes this one" in capsys.readouterr().out


def test_a_compiled_function_says_that_it_has_no_forward_mode():
    torch._dynamo.reset()
    h, t = torch.randn(2, 8), torch.randn(2, 8)
    compiled = torch.compile(bk.swiglu, backend="aot_eager")
    compiled(h)
    with fwAD.dual_level():
        dual = fwAD.make_dual(h, t)
        assert fwAD.unpack_dual(bk.swiglu(dual)).tangent is not None
        with pytest.raises(RuntimeError, match=r"swiglu: .* call bitdance_kernels.swiglu without"):
            compiled(dual)


def test_no_gradient_in_the_table_of_rope():
    x, freqs = torch.randn(1, 3, 2, 4), torch.randn(3, 2, 2)
    with pytest.raises(RuntimeError, match="rope: has no gradient, but freqs requires grad"):
        bk.rope(x, freqs.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="rope: has no gradient, but freqs requires grad"):
        bk.rope(x.clone().requires_grad_(), freqs.clone().requires_grad_())
    angles = torch.randn(3, 2)
    table = torch.stack((angles.cos(), angles.sin()), -1)
    pushed = jvp(lambda f: bk.rope(x, f), (table,), (freqs,))[1]
    _close(pushed, bk.rope(x, table + freqs) - bk.rope(x, table))  # linear in the table


@pytest.mark.parametrize("op", [bk.swiglu, functools.partial(bk.patch_attention, num_heads=2)])
def test_autocast_within_transforms(op):
    """Autocast casts the same arguments as elsewhere, and nothing within an op."""
    h = torch.randn(2, 3, 4, 48)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.stack([op(x) for x in h])
        mapped, pushed = vmap(op)(h), jvp(op, (h[0],), (h[1],))[0]
    for actual, wanted in ((mapped, expected), (pushed, expected[0])):
        assert actual.dtype == wanted.dtype
        torch.testing.assert_close(actual, wanted)


def test_processes_do_not_sum_what_is_transformed(tmp_path):
    x = torch.randn(4, 8)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        group = torch.distributed.group.WORLD
        op = functools.partial(bk.lfq_entropy, group_bits=4, process_group=group)
        assert torch.equal(op(x)[1], bk.lfq_entropy(x, 4)[1])
        for ask in (
            lambda: jvp(op, (x,), (x,)),
            lambda: grad(lambda t: op(t)[1])(x),
            lambda: dual_level(op, (x,), (x,)),
        ):
            with pytest.raises(RuntimeError, match="lfq_entropy: process_group must be None in"):
                ask()
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(TypeError, match="lfq_entropy: process_group must be a ProcessGroup, got"):
        bk.lfq_entropy(x, 4, process_group="world")


def test_attention_under_vmap_keeps_nan_from_queries_that_do_not_see_it():
    ranges = bk.block_causal_ranges(3, 2, 2)
    q, k, v = torch.randn(3, 2, 1, 7, 2, 8).unbind()
    for bad in (k, v):
        kept = bad.clone()
        bad[1, 0, 5] = float("nan")
        mapped = vmap(functools.partial(bk.block_causal_attention, ranges=ranges))(q, k, v)
        bad.copy_(kept)
        expected = torch.stack(
            [bk.block_causal_attention(*x, ranges) for x in zip(q, k, v, strict=True)]
        )
        assert mapped[1, 0, 5:].isnan().all()
        _close(mapped[0], expected[0])
        _close(mapped[1, 0, :5], expected[1, 0, :5])


def test_noise_under_vmap():
    keys = bk.noise_keys(3, range(4)).view(2, 2, 3)
    for backend in ("reference", "auto"):
        mapped = vmap(functools.partial(bk.noise, step=1, elements=6, backend=backend))(keys)
        _close(mapped, torch.stack([bk.noise(k, 1, 6) for k in keys]))


def test_registry_is_covered():
    public = {case.kernel_op.name for case in CASES.values()}
    backward = {name for name, op in REGISTRY.items() if op._is_backward}
    assert public | backward | {"linear_out", "linear_gated_residual_moments"} == set(REGISTRY)


def test_linear_into_an_output_under_vmap():
    x, w, out = torch.randn(3, 2, 4), torch.randn(5, 4), torch.zeros(3, 2, 5)
    vmap(lambda x, out: bk.linear(x, w, out=out))(x, out)
    _close(out, x @ w.T)
    with pytest.raises(RuntimeError, match="linear: has no gradient, but x requires grad"):
        grad(lambda x: bk.linear(x, w, out=out).sum())(x)
    with fwAD.dual_level(), pytest.raises(RuntimeError, match="linear: has no forward-mode"):
        bk.linear(fwAD.make_dual(x, x), w, out=out)
