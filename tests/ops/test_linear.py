import re

import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import BackendError, CpuGraph, linear, pack_weight, use_backend
from bitdance_kernels._shared import native
from bitdance_kernels.denoise.linear.op import _op
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads

X, W, B = torch.zeros(3, 8), torch.zeros(5, 8), torch.zeros(5)
INVALID = {
    "linear": (
        Invalid("dtype", Call("int", (X.int(), W.int())), TypeError, "x must be float32 .* int32"),
        Invalid("dtype", Call("weight", (X, W.half())), TypeError,
                "weight must be float32, got float16"),
        Invalid("dtype", Call("out", (X, W, B), {"out": torch.zeros(3, 5).half()}), TypeError,
                "out must be float32, got float16"),
        Invalid("rank", Call("weight", (X, W[0])), ValueError, "weight must be of 2 dimensions"),
        Invalid("rank", Call("no dimension", (X, W[0, 0])), ValueError,
                "weight must be of 2 dimensions"),
        Invalid("size", Call("width", (X, W[:, :7])), ValueError,
                r"weight must be of shape \[F, C\] = \[5, 8\], got \[5, 7\]"),
        Invalid("size", Call("bias", (X, W, B[:4])), ValueError,
                r"bias must be of shape \[F\] = \[5\], got \[4\]"),
        Invalid("size", Call("out", (X, W, B), {"out": torch.zeros(3, 8)}), ValueError,
                r"out must be of shape \[..., F\] = \[3, 5\], got \[3, 8\]"),
        Invalid("size", Call("packed", (X, torch.zeros(1, 1, 32, 8))), ValueError,
                r"x must be \[..., C\] with C a multiple of 16 where weight is packed"),
        Invalid("size", Call("tiles", (torch.zeros(3, 16), torch.zeros(1, 1, 16, 16))), ValueError,
                r"weight must be of shape \[F / 16, C / 16, 32, 8\] = \[1, 1, 32, 8\], got"),
        Invalid("size", Call("panels", (X, torch.zeros(1, 7, 16))), ValueError,
                r"weight must be of shape \[F / 16, C, 16\] = \[1, 8, 16\], got \[1, 7, 16\]"),
        Invalid("size", Call("features", (X, torch.zeros(1, 8, 8))), ValueError,
                r"weight must be of shape \[F / 16, C, 16\] = \[1, 8, 16\], got \[1, 8, 8\]"),
        Invalid("device", Call("bias elsewhere", (X, W, B.to("meta"))), ValueError,
                "bias must be on cpu like x, got meta"),
        Invalid("device", Call("out elsewhere", (X, W, B), {"out": (X @ W.t()).to("meta")}),
                ValueError, "out must be on cpu like x, got meta"),
    )
}  # fmt: skip
AVAILABLE = [name for name in _op.backends if _op.unavailable(name) is None]
BACKENDS = pytest.mark.parametrize("backend", AVAILABLE)
needs_cpu = pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")


def check_integers(rows, channels, features, backend):
    x, weight = torch.randint(-2, 3, (rows, channels)), torch.randint(-2, 3, (features, channels))
    bias = torch.randint(-8, 9, (features,))
    exact = F.linear(x.double(), weight.double(), bias.double())
    x, weight, bias, exact = (t.float() for t in (x, weight, bias, exact))
    if features % 16 == 0:
        weight = pack_weight(weight, "panels")
    assert torch.equal(linear(x, weight, bias, backend=backend), exact)
    columns = x.t().contiguous().t()  # whose channels are not adjacent
    assert torch.equal(linear(columns, weight, bias, backend=backend), exact)


SIZES = [(rows, *rest) for rows in (1, 2, 3, 4, 11, 70) for rest in ((48, 5), (31, 24), (1100, 66))]
PANELS = [
    (rows, *rest) for rows in (*range(1, 18), 70) for rest in ((48, 96), (31, 112), (700, 48))
]


@pytest.mark.parametrize("isa", cpu_isas())
def test_small_integers_are_exact(isa):
    with cpu_isa(isa):
        for sizes in (*SIZES, *PANELS):
            check_integers(*sizes, "cpu")


@pytest.mark.parametrize("backend", sorted(set(AVAILABLE) - {"cpu"}))
def test_small_integers_are_exact_elsewhere(backend):
    for sizes in (*SIZES[1::3], *PANELS[1::12]):
        check_integers(*sizes, backend)


@pytest.mark.parametrize("form", ["matrix", "panels"])
@pytest.mark.parametrize("isa", cpu_isas())
def test_a_row_of_a_batch_is_the_row_alone(isa, form):
    x, weight, bias = torch.randn(13, 1201), torch.randn(160, 1201), torch.randn(160)
    if form == "panels":
        weight = pack_weight(weight, "panels")
    with cpu_isa(isa):
        whole = linear(x, weight, bias, backend="cpu")
        for threads in (1, 2, 3):
            with cpu_threads(threads):
                assert torch.equal(linear(x, weight, bias, backend="cpu"), whole)
                for row in range(13):
                    assert torch.equal(linear(x[row], weight, bias, backend="cpu"), whole[row])


@pytest.mark.parametrize("isa", cpu_isas())
def test_panels_are_split_among_threads_by_rows_too(isa):
    x, weight = torch.randn(300, 600), torch.randn(32, 600)
    panels = pack_weight(weight, "panels")
    with cpu_isa(isa), cpu_threads(1):
        alone = torch.cat([linear(row[None], panels, backend="cpu") for row in x])
        for threads in (1, 2, 3, 7):
            with cpu_threads(threads):
                assert torch.equal(linear(x, panels, backend="cpu"), alone)


@pytest.mark.parametrize("form", ["matrix", "panels"])
@BACKENDS
def test_out_is_written_in_place(backend, form):
    x, weight, bias = torch.randn(6, 24), torch.randn(16, 24), torch.randn(16)
    expected = F.linear(x, weight, bias)
    if form == "panels":
        weight = pack_weight(weight, "panels")
    around = torch.full((8, 20), torch.nan)
    out = around[1:7, 2:18]
    assert linear(x, weight, bias, out=out, backend=backend) is out
    torch.testing.assert_close(out, expected)
    out.fill_(torch.nan)
    assert torch.isnan(around).all(), "nothing beside it"
    columns = torch.empty(16, 6).t()
    torch.testing.assert_close(linear(x, weight, bias, out=columns), expected)


@needs_cpu
def test_which_calls_are_the_librarys():
    weight = torch.randn(5, 8)
    with pytest.raises(BackendError, match="it is for at most 512 rows, got 513"):
        linear(torch.randn(513, 8), weight, backend="cpu")
    assert linear(torch.randn(513, 8), weight).shape == (513, 5)
    with pytest.raises(BackendError, match="it writes rows whose features are adjacent"):
        linear(X, weight, out=torch.empty(5, 3).t(), backend="cpu")


def test_autograd_notices_what_is_written():
    out = torch.zeros(3, 5)
    y = (out * torch.ones(3, 5, requires_grad=True)).sum()
    linear(X, W, B, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_has_the_gradient_of_f_linear_and_none_with_out():
    for shape in ((6, 24), (24,), (2, 3, 24), (0, 24)):
        x, weight, bias = torch.randn(shape), torch.randn(10, 24), torch.randn(10)
        leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
        assert torch.autograd.gradcheck(linear, leaves)
        grads = [
            torch.autograd.grad(function(*leaves).sum(), leaves) for function in (linear, F.linear)
        ]
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs)
    with pytest.raises(RuntimeError, match="linear: has no gradient, but weight requires"):
        linear(X, W.clone().requires_grad_(), out=torch.zeros(3, 5))


@pytest.mark.parametrize("layout", ["rows", "panels"])
def test_a_packed_weight_is_its_matrix(layout):
    x, weight, bias = torch.randn(2, 3, 32), torch.randn(48, 32), torch.randn(48)
    packed, expected = pack_weight(weight, layout), linear(x, weight, bias, backend="reference")
    with use_backend("reference"):
        assert torch.equal(linear(x, packed, bias), expected)
        assert torch.equal(linear(x, packed, bias, out=torch.empty(2, 3, 48)), expected)
    if layout == "rows":
        reason = native.cpu.unavailable("linear") or "it takes a matrix or panels, got a weight"
        with pytest.raises(BackendError, match=re.escape(reason)):
            linear(x, packed, bias, backend="cpu")
    x, weight, bias, packed = (
        t.double().requires_grad_() for t in (x, weight, bias, pack_weight(weight, layout))
    )
    cotangent = torch.randn(2, 3, 48).double()
    ours = torch.autograd.grad(linear(x, packed, bias), (x, packed, bias), cotangent)
    theirs = torch.autograd.grad(linear(x, weight, bias), (x, weight, bias), cotangent)
    for a, b in zip(ours, (theirs[0], pack_weight(theirs[1], layout), theirs[2]), strict=True):
        torch.testing.assert_close(a, b)


def test_is_compiled_and_captured():
    x, weight, bias, out = (
        torch.randn(6, 24),
        torch.randn(10, 24),
        torch.randn(10),
        torch.zeros(6, 10),
    )
    compiled = torch.compile(
        lambda x: (linear(x, weight, bias), linear(x, weight, bias, out=out)),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    for y in compiled(x):
        torch.testing.assert_close(y, F.linear(x, weight, bias))
    torch.testing.assert_close(out, F.linear(x, weight, bias))
    if CpuGraph.unavailable() is None:
        graph = CpuGraph()
        y = graph.capture(lambda: linear(x, weight, bias) + linear(x, weight, bias, out=out))
        x.normal_()
        graph.replay()
        torch.testing.assert_close(y, 2 * F.linear(x, weight, bias))
    with use_backend("reference"):
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
