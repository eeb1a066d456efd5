import re

import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import BackendError, CpuGraph, linear, pack_weight, unpack_weight, use_backend
from bitdance_kernels._shared import native
from bitdance_kernels.denoise.linear import cuda
from bitdance_kernels.denoise.linear.op import _op
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads
from tests.cases.linear import int8_panels

X, W, B = torch.zeros(3, 8), torch.zeros(5, 8), torch.zeros(5)
INT8 = int8_panels(torch.zeros(16, 8))
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
        Invalid("size", Call("scales", (X, torch.zeros(1, 8, 16, dtype=torch.int8))), ValueError,
                r"must be of shape \[F / 16, C \+ 4, 16\] = \[1, 12, 16\], got \[1, 8, 16\]"),
        Invalid("dtype", Call("int8", (X, W.to(torch.int8))), TypeError,
                "weight must be float32, got int8"),
        Invalid("dtype", Call("int8 bias", (X, INT8, torch.zeros(16).half())), TypeError,
                "bias must be float32, got float16"),
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
        int8 = pack_weight(weight.to(torch.int8), "panels", scales=torch.ones(features))
        assert torch.equal(linear(x, int8, bias, backend=backend), exact)
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


FORMS = pytest.mark.parametrize("form", ["matrix", "panels", "int8"])


def in_form(weight, form):
    """A weight as one of the forms that the op takes."""
    if form == "matrix":
        return weight
    return pack_weight(weight, form) if form == "panels" else int8_panels(weight)


@FORMS
@pytest.mark.parametrize("isa", cpu_isas())
def test_a_row_of_a_batch_is_the_row_alone(isa, form):
    x, bias = torch.randn(13, 1201), torch.randn(160)
    weight = in_form(torch.randn(160, 1201), form)
    with cpu_isa(isa):
        whole = linear(x, weight, bias, backend="cpu")
        for threads in (1, 2, 3):
            with cpu_threads(threads):
                assert torch.equal(linear(x, weight, bias, backend="cpu"), whole)
                for row in range(13):
                    assert torch.equal(linear(x[row], weight, bias, backend="cpu"), whole[row])


@pytest.mark.parametrize("form", ["panels", "int8"])
@pytest.mark.parametrize("isa", cpu_isas())
def test_panels_are_split_among_threads_by_rows_too(isa, form):
    x, panels = torch.randn(300, 600), in_form(torch.randn(32, 600), form)
    with cpu_isa(isa), cpu_threads(1):
        alone = torch.cat([linear(row[None], panels, backend="cpu") for row in x])
        for threads in (1, 2, 3, 7):
            with cpu_threads(threads):
                assert torch.equal(linear(x, panels, backend="cpu"), alone)


@FORMS
@BACKENDS
def test_out_is_written_in_place(backend, form):
    x, bias, weight = torch.randn(6, 24), torch.randn(16), in_form(torch.randn(16, 24), form)
    expected = F.linear(x, weight if form == "matrix" else unpack_weight(weight, "panels"), bias)
    around = torch.full((8, 20), torch.nan)
    out = around[1:7, 2:18]
    assert linear(x, weight, bias, out=out, backend=backend) is out
    torch.testing.assert_close(out, expected)
    out.fill_(torch.nan)
    assert torch.isnan(around).all(), "nothing beside it"
    columns = torch.empty(16, 6).t()
    torch.testing.assert_close(linear(x, weight, bias, out=columns), expected)


@pytest.mark.parametrize("isa", cpu_isas())
def test_int8_weights_have_the_sums_of_float32_panels(isa):
    """Bit for bit where their values times the scales are exact, the extremes included."""
    values = torch.randint(-127, 128, (112, 391), dtype=torch.int8)
    values[::3, ::2], values[1::3, ::2] = 127, -128
    scales = torch.exp2(torch.arange(112) % 40 - 20)
    int8 = pack_weight(values, "panels", scales=scales)
    wide = pack_weight(values.float() * scales[:, None], "panels")
    with cpu_isa(isa):
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 33):
            x, bias = torch.randn(rows, 391), torch.randn(112)
            for b in (None, bias):
                ours = linear(x, int8, b, backend="cpu")
                assert torch.equal(ours, linear(x, wide, b, backend="cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@needs_cpu
def test_halves_and_int8_weights_are_summed_in_float32(dtype):
    x, bias = torch.randn(5, 40).to(dtype), torch.randn(32).to(dtype)
    weight = int8_panels(torch.randn(32, 40))
    expected = linear(x.float(), weight, bias.float(), backend="cpu").to(dtype)
    for _ in range(3):  # calls of one signature
        assert torch.equal(linear(x, weight, bias, backend="cpu"), expected)
        x, expected = x * 2, linear(x.float() * 2, weight, bias.float(), backend="cpu").to(dtype)
    graph = CpuGraph()
    y = graph.capture(lambda: linear(x, weight, bias))
    x.normal_()
    graph.replay()
    assert torch.equal(y, linear(x.float(), weight, bias.float()).to(dtype))
    many = torch.randn(257, 40).to(dtype)
    with pytest.raises(BackendError, match=f"at most 256 rows of {dtype}, got 257"):
        linear(many, weight, backend="cpu")
    assert linear(many, weight).dtype == dtype


def test_cards_take_no_int8_weights(monkeypatch):
    for check in ("cuda_unsupported", "sm90_unsupported"):
        monkeypatch.setattr(native, check, lambda *_: None)
    reason = cuda.unsupported(X.half(), INT8, None)
    assert reason == "it takes weights that pack_weight has packed for tensor cores"


@needs_cpu
def test_int8_weights_pass_gradients_to_x_and_bias():
    x, bias = torch.randn(5, 40, requires_grad=True), torch.randn(32, requires_grad=True)
    weight = int8_panels(torch.randn(32, 40))
    matrix, cotangent = unpack_weight(weight, "panels"), torch.randn(5, 32)
    ours = torch.autograd.grad(linear(x, weight, bias), (x, bias), cotangent)
    theirs = torch.autograd.grad(F.linear(x, matrix, bias), (x, bias), cotangent)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@needs_cpu
def test_which_calls_are_the_librarys():
    with pytest.raises(BackendError, match=r"it does not handle torch\.float64"):
        linear(X.double(), INT8, backend="cpu")
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
