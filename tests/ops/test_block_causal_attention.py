import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bitdance_kernels import (
    Ranges,
    block_causal_attention,
    block_causal_ranges,
    dense_mask,
    use_backend,
)
from bitdance_kernels.attention.block_causal_attention import _fused_cpu, op, reference
from bitdance_kernels.testing import Call, Invalid, compare
from tests.test_ranges import monotone_ranges

Q = torch.zeros(2, 3, 4, 8)
KV = torch.zeros(2, 5, 2, 8)
R = block_causal_ranges(3, 0, 1)


def _row(kind, name, args, error, match):
    return Invalid(kind, Call(name, args), error, f"block_causal_attention: {match}")


INVALID = {
    "block_causal_attention": (
        _row("dtype", "int q", (Q.int(), KV, KV, R), TypeError, "q must be float32 .* got int32"),
        _row(
            "dtype", "k of half", (Q, KV.half(), KV, R), TypeError, "k must be float32, got float16"
        ),
        _row(
            "dtype",
            "mask",
            (Q, KV, KV, dense_mask(R)),
            TypeError,
            "ranges must be Ranges, got Tensor",
        ),
        _row(
            "rank",
            "q without batch",
            (Q[0], KV, KV, R),
            ValueError,
            r"q must be of 4 dimensions, got",
        ),
        _row(
            "rank", "scalar q", (Q[0, 0, 0, 0], KV, KV, R), ValueError, r"q must be of 4 dimensions"
        ),
        _row(
            "size",
            "batch of v",
            (Q, KV, KV[:1], R),
            ValueError,
            r"v must be of shape \[B, Tk, Hkv, D\]",
        ),
        _row(
            "size",
            "D of k",
            (Q, KV[..., :4], KV, R),
            ValueError,
            r"k must be of shape .* got \[2, 5, 2, 4\]",
        ),
        _row(
            "size",
            "heads",
            (Q[:, :, :3], KV, KV, R),
            ValueError,
            "k must be .* Hkv a divisor of H = 3, got 2",
        ),
        _row(
            "size",
            "no D",
            (Q[..., :0], KV[..., :0], KV[..., :0], R),
            ValueError,
            r"q must be .* with D > 0",
        ),
        _row(
            "size",
            "ranges",
            (Q, KV, KV, block_causal_ranges(4, 0, 1)),
            ValueError,
            r"ranges.start must be of shape \[T\] = \[3\], got \[4\]",
        ),
        _row(
            "size",
            "rows of ranges",
            (Q, KV, KV, Ranges(R.start.expand(3, 3), R.end.expand(3, 3))),
            ValueError,
            r"ranges.start must be of shape \[B, T\] = \[2, 3\], got \[3, 3\]",
        ),
        _row(
            "device",
            "k elsewhere",
            (Q, KV.to("meta"), KV, R),
            ValueError,
            "k must be on cpu like q, got meta",
        ),
        _row(
            "device",
            "ranges elsewhere",
            (Q, KV, KV, block_causal_ranges(3, 0, 1, device="meta")),
            ValueError,
            "ranges.start must be on cpu like q, got meta",
        ),
    )
}


def _inputs(B, T, Tk, heads, D, dtype=torch.float64, grad=False):
    H, Hkv = heads
    shapes = ((B, T, H, D), (B, Tk, Hkv, D), (B, Tk, Hkv, D))
    return [torch.randn(shape, dtype=dtype, requires_grad=grad) for shape in shapes]


def _naive(q, k, v, mask, scale):
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    mask = (mask if mask.dim() == 3 else mask[None])[:, None]
    scores = scores.masked_fill(~mask & mask.any(-1, keepdim=True), -math.inf)
    weights = torch.softmax(scores, dim=-1) * mask
    return torch.einsum("bhij,bjhd->bihd", weights, v)


@given(monotone_ranges(batch=True), st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]))
def test_any_ranges_equal_a_dense_mask(drawn, heads):
    ranges, keys = drawn
    B, T = ranges.start.shape if ranges.start.dim() == 2 else (2, *ranges.start.shape)
    q, k, v = _inputs(B, T, keys, heads, 4, grad=True)
    out = block_causal_attention(q, k, v, ranges, scale=0.7)
    expected = _naive(q, k, v, dense_mask(ranges, keys), 0.7)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    actual = torch.autograd.grad(out, (q, k, v), cotangent)
    wanted = torch.autograd.grad(expected, (q, k, v), cotangent)
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    ranges = Ranges(
        *torch.tensor([[[0, 0, 2, 3], [1, 1, 1, 2]], [[2, 2, 2, 5], [1, 3, 3, 5]]]).int()
    )
    inputs = _inputs(2, 4, 5, (4, 2), 3, grad=True)
    assert torch.autograd.gradcheck(lambda *x: block_causal_attention(*x, ranges), inputs)
    shared = block_causal_ranges(1, 2, 2)
    inputs = _inputs(1, 5, 5, (1, 1), 4, grad=True)
    assert torch.autograd.gradcheck(
        lambda *x: block_causal_attention(*x, shared, scale=2.0), inputs
    )


def test_a_default_scale_as_in_pytorch():
    ranges = block_causal_ranges(2, 2, 3)
    q, k, v = _inputs(2, 8, 8, (2, 2), 16)
    expected = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=dense_mask(ranges)
    )
    out = block_causal_attention(q, k, v, ranges)
    torch.testing.assert_close(out, expected.transpose(1, 2))


FORMULAS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
FUSED = pytest.mark.parametrize("fused", [True, False, None], ids=["fused", "formula", "auto"])


@pytest.fixture
def formula(fused, monkeypatch):
    """The reference with or without PyTorch's fused kernel, or the best backend."""
    if fused is False:
        monkeypatch.setattr(_fused_cpu, "applies", lambda q: False)
    with use_backend("auto" if fused is None else "reference"):
        yield


@FUSED
@FORMULAS
def test_unseen_poison_does_not_leak(dtype, fused, formula):
    # Query 0 sees nothing, nor does query 4 of the second row; keys 0, 3 and 6 are seen by none.
    start = torch.tensor([[1, 1, 1, 4, 4], [1, 1, 1, 4, 6]], dtype=torch.int32)
    end = torch.tensor([[1, 2, 3, 6, 6], [1, 2, 3, 6, 6]], dtype=torch.int32)
    ranges = Ranges(start, end, keys=7)
    q, k, v = _inputs(2, 5, 7, (2, 1), 4, dtype)
    poisoned = [x.clone() for x in (q, k, v)]
    for x, value in zip(poisoned[1:], (math.nan, math.inf), strict=True):
        x[:, [0, 3, 6]] = value
    poisoned[0][:, 0] = math.nan
    poisoned[0][1, 4] = math.inf
    results = []
    for inputs in ((q, k, v), poisoned):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = block_causal_attention(*leaves, ranges)
        cotangent = torch.ones_like(out)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, cotangent)])
    for clean, dirty in zip(*results, strict=True):
        assert dirty.isfinite().all()
        assert torch.equal(clean, dirty)
    out, dq, dk, dv = results[0]
    assert (out[:, 0] == 0).all()
    assert (out[1, 4] == 0).all()
    assert (out[0, 4] != 0).all()
    assert (dq[:, 0] == 0).all()
    assert (dk[:, [0, 3, 6]] == 0).all()
    assert (dv[:, [0, 3, 6]] == 0).all()
    assert (dv[:, [1, 2, 4, 5]] != 0).all()


@FUSED
def test_log_sum_exp_of_each_query(fused, formula):
    ranges = Ranges(*torch.tensor([[0, 0, 3], [0, 2, 5]], dtype=torch.int32))
    q, k, v = _inputs(2, 3, 5, (4, 2), 4, torch.float32)
    _, lse = op._op.call(q, k, v, ranges.start, ranges.end, 0.5, "reference")
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, dim=2)) * 0.5
    expected = scores.masked_fill(~dense_mask(ranges, 5), -math.inf).logsumexp(-1)
    assert lse.dtype == torch.float32
    assert lse.shape == (2, 4, 3)
    assert (lse[:, :, 0] == -math.inf).all()
    torch.testing.assert_close(lse, expected)


# Enough rows that the largest of the errors is no matter of luck.
SEQUENCES = {
    "ImageNet": (8, block_causal_ranges(63, 16, 16), (4, 4)),
    "serial": (8, block_causal_ranges(300, 0, 1), (4, 2)),
    "sliding": (
        8,
        Ranges(*(torch.arange(400, dtype=torch.int32) + x for x in (0, 150)), keys=549),
        (4, 1),
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_kernel_against_the_formula(name, dtype):
    B, ranges, heads = SEQUENCES[name]
    T, Tk = len(ranges.start), int(ranges.end.max())
    q, k, v = _inputs(B, T, Tk, heads, 32, dtype)
    grad = torch.randn_like(q)

    def results(module, *tensors):
        q, k, v, grad = tensors
        out, lse = module.forward(q, k, v, ranges.start, ranges.end, 0.2)
        grads = module.backward(grad, q, k, v, out, lse, ranges.start, ranges.end, 0.2)
        return {"out": out, "lse": lse, **dict(zip(("dq", "dk", "dv"), grads, strict=True))}

    truth = results(reference, *(x.double() for x in (q, k, v, grad)))
    plain = results(reference, q, k, v, grad)
    fused = results(_fused_cpu, q, k, v, grad)
    for name in truth:
        compare("staged", fused[name], plain[name], truth[name], name)


@FUSED
def test_chunks_change_nothing_but_rounding(fused, formula, monkeypatch):
    ranges = block_causal_ranges(3, 5, 4)
    inputs = _inputs(3, 23, 23, (2, 1), 8, torch.float32, grad=True)
    runs = []
    for limit in (2**24, 23 * 2 * 7):  # the second: seven queries at a time
        monkeypatch.setattr(reference, "_SCORES", limit)
        if limit != 2**24:
            for number in ("_QUERIES", "_BACKWARD_QUERIES", "_BACKWARD_WHOLE"):
                monkeypatch.setattr(_fused_cpu, number, 7)
        out = block_causal_attention(*inputs, ranges, backend="reference")
        runs.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for whole, parts in zip(*runs, strict=True):
        torch.testing.assert_close(whole, parts)


def test_plan_is_kept_while_the_ranges_are_the_same(monkeypatch):
    monkeypatch.setattr(_fused_cpu, "_plans", {})
    made = []
    original = _fused_cpu._make_plan
    monkeypatch.setattr(_fused_cpu, "_make_plan", lambda *a: made.append(a) or original(*a))
    inputs = _inputs(2, 11, 11, (2, 2), 8, torch.float32)
    kept = {"backend": "reference"}
    with torch.inference_mode():  # tensors that no later step can train with
        block_causal_attention(*inputs, block_causal_ranges(3, 2, 4), **kept)
    leaves = [x.requires_grad_() for x in inputs]
    ranges = block_causal_ranges(3, 2, 4)
    block_causal_attention(*leaves, ranges, **kept).sum().backward()
    assert len(made) == 2  # forward and backward go by chunks of other sizes
    tensors = [weakref.ref(x) for x in (ranges.start, ranges.end)]
    del ranges
    gc.collect()
    assert [x() for x in tensors] == [None, None]


def test_plan_follows_the_values_of_ranges(monkeypatch):
    monkeypatch.setattr(_fused_cpu, "_plans", {})
    q, k, v = _inputs(2, 11, 11, (2, 2), 8, torch.float32)
    ranges = block_causal_ranges(3, 2, 4)
    block_causal_attention(q, k, v, ranges, backend="reference")
    shared = ranges.start.numpy()  # writes that no version counter sees
    shared[5:] = 2
    expected = _naive(q, k, v, dense_mask(ranges), 8**-0.5)
    found = block_causal_attention(q, k, v, ranges, backend="reference")
    torch.testing.assert_close(found, expected)


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(_fused_cpu, "_plans", {})
    monkeypatch.setattr(_fused_cpu, "_KEPT", 20 * 20)
    for T in range(1, 30):
        x = torch.randn(1, T, 1, 8)
        ranges = block_causal_ranges(T, 0, 1)
        expected = _naive(x, x, x, dense_mask(ranges), 8**-0.5)
        found = block_causal_attention(x, x, x, ranges, backend="reference")
        torch.testing.assert_close(found, expected)
    kept = [len(plan.start) for plan in _fused_cpu._plans.values()]
    assert kept == list(range(30 - _fused_cpu._PLANS, 30))
    assert [bool(plan.masks) for plan in _fused_cpu._plans.values()] == [False] * len(kept)


def test_scores_of_a_long_sequence_are_never_all_there(monkeypatch):
    """8,192 queries would have 256 MB of scores; the formula takes them 64 MB at a time."""
    monkeypatch.setattr(_fused_cpu, "applies", lambda q: False)
    sizes = []
    original = reference._mask

    def mask(*args):
        result = original(*args)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(reference, "_mask", mask)
    T = 8192
    x = torch.randn(1, T, 1, 2)
    block_causal_attention(x, x, x, block_causal_ranges(T, 0, 1))
    assert sum(sizes) == T * T
    assert max(sizes) <= 2**24


def test_gradient_reaches_only_what_asks_for_it():
    q, k, v = _inputs(1, 4, 4, (1, 1), 4)
    k.requires_grad_()
    out = block_causal_attention(q, k, v, block_causal_ranges(4, 0, 1))
    out.sum().backward()
    assert k.grad is not None
    assert q.grad is None


def test_compiled_training_step():
    ranges = block_causal_ranges(2, 3, 4)
    inputs = _inputs(2, 14, 14, (2, 1), 8, torch.float32, grad=True)

    def step(q, k, v):
        return block_causal_attention(q, k, v, ranges).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(*inputs), inputs)
    expected = torch.autograd.grad(step(*inputs), inputs)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)
