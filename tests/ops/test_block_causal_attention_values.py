"""NaN and infinity in attention stay with what sees them."""

import math

import pytest
import torch

from bitdance_kernels import (
    Ranges,
    block_causal_attention,
    block_causal_ranges,
    block_decode_attention,
    dense_mask,
    packed_document_ranges,
    use_backend,
)
from bitdance_kernels.attention.block_causal_attention import _fused_cpu
from bitdance_kernels.testing import cpu_isas

DOCUMENTS = packed_document_ranges([7, 14], [(7, "causal"), (14, "parallel")], patch_tokens=4)
OTHERS = Ranges(DOCUMENTS.start.clone(), DOCUMENTS.start + 1, validate=False)
RANGES = {
    "block causal": block_causal_ranges(3, 4, 4),
    "packed documents": DOCUMENTS,
    "by row": Ranges(
        torch.stack([DOCUMENTS.start, OTHERS.start]), torch.stack([DOCUMENTS.end, OTHERS.end])
    ),
}
NATIVE = ["cpu"] if cpu_isas() else []
BACKENDS = {
    "fused": ("reference", torch.float32),
    "formula": ("reference", torch.float32),
    "float64": ("reference", torch.float64),
    **{name: (name, torch.float32) for name in NATIVE},
}
D, KEY, CHANNEL = 8, 9, 5


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    name, dtype = BACKENDS[request.param]
    if request.param == "formula":
        monkeypatch.setattr(_fused_cpu, "applies", lambda q: False)
    with use_backend(name):
        yield dtype


def _run(inputs, ranges):
    *leaves, cotangent = (x.clone() for x in inputs)
    leaves = [x.requires_grad_() for x in leaves]
    out = block_causal_attention(*leaves, ranges)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def _check(name, where, value, dtype):
    ranges = RANGES[name]
    B, T = torch.atleast_2d(ranges.start).shape
    inputs = [torch.randn(B, T, heads, D).to(dtype) for heads in (4, 2, 2, 4)]
    clean = _run(inputs, ranges)
    inputs["qkv".find(where)][0, KEY, 1, CHANNEL] = value
    dirty = _run(inputs, ranges)

    mask = dense_mask(ranges).expand(B, T, T)
    heads = {"q": [1], "gradient": [1]}.get(where, [2, 3])  # of the queries
    reads = torch.zeros(B, T, dtype=torch.bool)
    reads[0] = mask[0, :, KEY] if where in "kv" else torch.arange(T) == KEY
    read_by = (mask & reads[..., None]).any(1)  # keys of a query that reads it
    own = {"q": 0, "gradient": 0}.get(where, 1)  # head of the keys
    for result, before, (affected, own_heads) in zip(
        dirty,
        clean,
        ((reads, heads), (reads, heads), (read_by, [own]), (read_by, [own])),
        strict=True,
    ):
        may = torch.zeros_like(result, dtype=torch.bool)
        may[:, :, own_heads] = affected[..., None, None]
        assert result[~may].isfinite().all()
        torch.testing.assert_close(result[~may], before[~may])
    out, dq, dk, dv = dirty
    if where == "v":
        assert (out[reads][:, heads, CHANNEL] == value).all() or math.isnan(value)
        assert not out[reads][:, heads, CHANNEL].isfinite().any()
        others = [channel for channel in range(D) if channel != CHANNEL]
        torch.testing.assert_close(out[..., others], clean[0][..., others])
    if math.isnan(value):
        nan = {"q": (out, dq, dk), "k": (out, dq, dk), "v": (dq, dk), "gradient": (dq, dk)}
        for result in nan[where]:
            own_heads, affected = (heads, reads) if result.shape[2] == 4 else ([own], read_by)
            some = (..., CHANNEL) if where == "gradient" and result is dv else (...,)
            assert result[affected][:, own_heads][some].isnan().all()
    if where == "gradient":
        assert not dv[read_by][:, own, CHANNEL].isfinite().any()


@pytest.mark.parametrize("where", ["q", "k", "v", "gradient"])
def test_what_is_not_seen_does_not_reach_a_result(where, backend):
    """Of one token: its key, its value, its query, the gradient of its output."""
    for ranges, value in zip(RANGES, (math.inf, math.nan, -math.inf), strict=True):
        _check(ranges, where, value, dtype=backend)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*NATIVE, "reference", "float64", "triton, split"])
def test_what_lies_behind_the_filled_rows_does_not_reach_a_result(name, value, monkeypatch):
    dtype = torch.float64 if name == "float64" else torch.float32
    splits = 3 if name.endswith("split") else 1
    monkeypatch.setattr(
        "bitdance_kernels.attention.block_decode_attention.triton.split_count", lambda *_: splits
    )
    lengths = torch.tensor([0, 1, 33, 70], dtype=torch.int32)
    q = torch.randn(4, 2, 4, D, dtype=dtype)
    k, v = torch.randn(2, 4, 70, 2, D, dtype=dtype).unbind()
    chosen = {"float64": "reference", "triton, split": "triton"}.get(name, name)
    clean = block_decode_attention(q, k, v, lengths, backend=chosen)
    for b, length in enumerate(lengths.tolist()):
        k[b, length:] = value
        v[b, length:] = -value
    dirty = block_decode_attention(q, k, v, lengths, backend=chosen)
    assert torch.equal(clean, dirty)
    assert (dirty[0] == 0).all()


def test_a_visible_value_that_is_not_finite_is_not_lost():
    """Nor by the long way of the reference, whose queries come in chunks."""
    ranges = block_causal_ranges(200, 0, 1)
    q, k, v = torch.randn(3, 1, 200, 2, D).unbind()
    v[0, 150, 1, 3] = math.inf
    out = block_causal_attention(q, k, v, ranges, backend="reference")
    found = ~out.isfinite()
    assert (out[found] == math.inf).all()
    assert found[0, 150:, 1, 3].all()
    assert found.sum() == 50


def _apart(*tensors):
    """Each [B, T, H, D] in a layout of its own: no stride of one is that of another."""
    orders = ((0, 1, 2), (2, 0, 1), (1, 2, 0))
    views = []
    for n, (tensor, order) in enumerate(zip(tensors, orders, strict=False)):
        sizes = [tensor.shape[axis] for axis in order]
        wide = torch.zeros(*sizes, tensor.shape[3] + 3 * n, dtype=tensor.dtype)
        view = wide.permute(*(order.index(axis) for axis in range(3)), 3)[..., : tensor.shape[3]]
        views.append(view.copy_(tensor))
    for n, view in enumerate(views):
        for other in views[:n]:
            assert all(a != b for a, b in zip(view.stride()[:3], other.stride()[:3], strict=True))
    return views


@pytest.mark.parametrize("name", ["reference", *NATIVE, "triton"])
def test_queries_keys_and_values_may_lie_differently(name):
    ranges = block_causal_ranges(1, 2, 3)
    q, k, v = (torch.randn(2, 7, heads, 16) for heads in (4, 2, 2))
    with use_backend(name):
        plain = _run([q, k, v, torch.ones_like(q)], ranges)
        views = [x.requires_grad_() for x in _apart(q, k, v)]
        out = block_causal_attention(*views, ranges)
        apart = [out.detach(), *torch.autograd.grad(out, views, torch.ones_like(q))]
        lengths = torch.tensor([3, 7], dtype=torch.int32)
        views = [view.detach() for view in views]
        results = [block_decode_attention(*x, lengths) for x in (views, (q, k, v))]
    for a, b in zip(apart, plain, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(*results)
