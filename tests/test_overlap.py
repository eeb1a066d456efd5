"""Tensors that an op writes have memory of their own, or are refused before it writes."""

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import bitdance_kernels as bk
from bitdance_kernels._dispatch import overlap
from bitdance_kernels._dispatch.op import REGISTRY
from tests.cases import all_cases

CPU = torch.device("cpu")
WRITING = {name: op for name, op in REGISTRY.items() if op._written}


def _linear(x, weight, bias, out):
    return bk.linear(x, weight, bias, out=out)


def _call(name):
    """Public function and arguments, in the order of the schema, of an op that writes some."""
    if name == "linear_out":
        arguments = [torch.randn(4, 6), torch.randn(5, 6), torch.randn(5), torch.zeros(4, 5)]
        return _linear, arguments
    case = all_cases()[name]
    call = next(c for c in case.samples(CPU) if all(t.numel() for t in c.tensors()))
    call = call.map(torch.clone)
    return lambda *given: case.op(*given, *call.args[len(given) :], **call.kwargs), list(call.args)


def _each_pair():
    for name, op in WRITING.items():
        _, given = _call(name)
        for i in op._written:
            for j in op._tensors:
                if i != j and j < len(given) and given[j] is not None:
                    yield pytest.param(name, i, j, id=f"{name}-{i}-{j}")


EVERY = pytest.mark.parametrize("name", WRITING)
EVERY_PAIR = pytest.mark.parametrize(("name", "i", "j"), list(_each_pair()))


def _bytes(tensor):
    return tensor.numel() * tensor.element_size()


def _placed(buffer, offset, like):
    """The values of `like` in a contiguous tensor that begins at a byte of `buffer`."""
    view = buffer[offset : offset + _bytes(like)].view(like.dtype).view(like.shape)
    return view.copy_(like)


def _expected(name):
    torch.manual_seed(0)
    function, given = _call(name)
    return function(*given), given


def _check(name, replaced):
    """The call with some arguments replaced gives the results that it has without overlaps."""
    torch.manual_seed(0)
    function, given = _call(name)
    expected, written = _expected(name)
    for _ in range(3):  # the second time by its signature
        fresh = [g.clone() if isinstance(g, torch.Tensor) else g for g in given]
        for i, tensor in replaced.items():
            fresh[i] = tensor.copy_(given[i])
        result = function(*fresh)
        leaves = map(pytree.tree_leaves, ((result, fresh), (expected, written)))
        for a, b in zip(*leaves, strict=True):
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a, b)


def _refused(name, i, replaced, got):
    torch.manual_seed(0)
    function, given = _call(name)
    for _ in range(2):
        function(*(g.clone() if isinstance(g, torch.Tensor) else g for g in given))  # remembered
    before = {k: t.clone() for k, t in replaced.items()}
    for backend in ("auto", "reference"):
        with bk.use_backend(backend), pytest.raises(ValueError, match=rf"^\w+: .* must be .*{got}"):
            function(*(replaced.get(k, g) for k, g in enumerate(given)))
    for k, tensor in replaced.items():
        assert torch.equal(tensor, before[k]), "was written"


@EVERY_PAIR
def test_an_argument_in_what_is_written_is_refused(name, i, j):
    """At the start, at the end and in the middle, of any dtypes, after equal valid calls."""
    _, given = _call(name)
    written, other = given[i], given[j]
    size, step = _bytes(written), written.element_size() * other.element_size()
    for offset in {0, step, size - written.element_size()}:
        offset = offset // other.element_size() * other.element_size()
        buffer = torch.zeros(size + _bytes(other) + step, dtype=torch.uint8)
        replaced = {i: _placed(buffer, 0, written), j: _placed(buffer, offset, other)}
        _refused(name, i, replaced, "memory that .* has too")


@EVERY
def test_the_same_tensor_twice_is_refused(name):
    _, given = _call(name)
    for i in WRITING[name]._written:
        for j, other in enumerate(given):
            same = isinstance(other, torch.Tensor) and (other.shape, other.dtype) == (
                given[i].shape,
                given[i].dtype,
            )
            if same and i != j:
                _refused(name, i, {i: given[i], j: given[i]}, "memory that .* has too")


@EVERY
def test_outputs_that_overlap_themselves_are_refused(name):
    """Expanded tensors, and windows that overlap each other."""
    _, given = _call(name)
    for i in WRITING[name]._written:
        shape = given[i].shape
        for dim in range(len(shape)):
            if shape[dim] > 1:
                expanded = given[i].narrow(dim, 0, 1).expand(shape)
                _refused(name, i, {i: expanded}, "strides .* for shape")
        windows = torch.zeros(given[i].numel() * 2, dtype=given[i].dtype)
        _refused(name, i, {i: windows.as_strided(shape, [1] * len(shape))}, "strides .* for shape")


@EVERY_PAIR
def test_neighbors_in_one_buffer_are_accepted(name, i, j):
    _, given = _call(name)
    written, other = given[i], given[j]
    buffer = torch.zeros(4 * (_bytes(written) + _bytes(other)), dtype=torch.uint8)
    after = -(-_bytes(written) // 16) * 16
    _check(name, {i: _placed(buffer, 0, written), j: _placed(buffer, after, other)})


@EVERY
def test_interleaved_views_are_accepted(name):
    """Alternating rows of two tensors in one allocation: only their extents overlap."""
    _, given = _call(name)
    for i in WRITING[name]._written:
        for j, other in enumerate(given):
            like = isinstance(other, torch.Tensor) and other.dtype == given[i].dtype
            if i == j or not like or other.dim() != given[i].dim():
                continue
            widths = given[i].shape[-1], other.shape[-1]
            rows = [max(a, b) for a, b in zip(given[i].shape, other.shape, strict=True)][:-1]
            both = torch.zeros(*rows, sum(widths), dtype=other.dtype)
            views = both[..., : widths[0]], both[..., widths[0] :]
            cut = [
                v[tuple(slice(n) for n in t.shape[:-1])]
                for v, t in zip(views, (given[i], other), strict=True)
            ]
            _check(name, {i: cut[0], j: cut[1]})


def test_caches_of_one_allocation():
    """Halves of [2, B, T, H, D], and what alternates in [B, T, 2, H, D] and [B, T, H, 2, D]."""
    for dim, shape in ((0, (2, 2, 8, 2, 4)), (2, (2, 8, 2, 2, 4)), (3, (2, 8, 2, 2, 4))):
        kept = torch.zeros(shape)
        _append(*kept.unbind(dim))
    both = torch.zeros(2, 16, 2, 4)
    _append(both[:, ::2], both[:, 1::2])
    _append(both[:, :8], both[:, 8:])
    with pytest.raises(ValueError, match=r"k_cache must be memory of its own, got .* v_cache"):
        _append(both[:, :8], both[:, 7:15])
    with pytest.raises(ValueError, match=r"k_cache must be memory of its own, got .* v_cache"):
        _append(both[:, ::2], both[:, 0:8])


def _append(k_cache, v_cache):
    qkv, freqs = torch.randn(2, 3, 24), torch.randn(8, 2, 2)
    position = torch.tensor([1, 2], dtype=torch.int32)
    apart = torch.zeros(2, 2, 8, 2, 4).unbind()
    bk.rope_append(qkv, *apart, position, freqs, num_heads=2)
    for cache in (k_cache, v_cache):
        cache.zero_()
    bk.rope_append(qkv, k_cache, v_cache, position, freqs, num_heads=2)
    torch.testing.assert_close((k_cache, v_cache), apart)


def test_the_same_shapes_at_other_distances():
    """Signatures hold the distances between tensors, so an earlier verdict is not reused."""
    x, w = torch.randn(4, 6), torch.randn(6, 6)
    buffer = torch.zeros(200)
    x_there = buffer[:24].view(4, 6).copy_(x)
    for _ in range(3):
        for start in (24, 28, 60):
            out = buffer[start : start + 24].view(4, 6)
            torch.testing.assert_close(bk.linear(x_there, w, out=out), x @ w.T)
        for start in (4, 20):
            with pytest.raises(ValueError, match="linear: out must be memory of its own"):
                bk.linear(x_there, w, out=buffer[start : start + 24].view(4, 6))


def test_overlap_is_that_of_numpy():
    """Many pairs of views, compared with a count of their addresses."""
    generator = torch.Generator().manual_seed(0)
    found = {True: 0, False: 0}
    for _ in range(300):
        buffer = torch.zeros(60)
        views = []
        for _ in range(2):
            shape = torch.randint(1, 4, (3,), generator=generator).tolist()
            strides = torch.randint(1, 9, (3,), generator=generator).tolist()
            offset = int(torch.randint(0, 8, (), generator=generator))
            views.append(buffer.as_strided(shape, strides, offset))
        places = [
            set(np.add.outer(np.add.outer(*(np.arange(n) * s for n, s in pairs[:2])),
                             np.arange(pairs[2][0]) * pairs[2][1]).flatten() + v.storage_offset())
            for v in views
            for pairs in [list(zip(v.shape, v.stride(), strict=True))]
        ]  # fmt: skip
        expected = bool(places[0] & places[1])
        assert overlap._overlap(*views) == expected
        found[expected] += 1
        if not overlap._overlaps_itself(views[0]):
            assert len(places[0]) == views[0].numel()
    assert min(found.values()) > 20


def test_a_compiled_call_refuses_one_tensor_twice():
    cache = torch.zeros(2, 8, 2, 4)
    torch._dynamo.reset()
    with pytest.raises((ValueError, RuntimeError), match="k_cache must be memory of its own"):
        torch.compile(_append, backend="aot_eager")(cache, cache)
