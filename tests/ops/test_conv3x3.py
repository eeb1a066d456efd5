import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import CpuGraph, conv3x3
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads
from tests.cases.conv3x3 import panels

X, WEIGHT = torch.zeros(1, 8, 3, 4), torch.zeros(16, 8, 3, 3)
PANELS = panels(WEIGHT)
ISAS = pytest.mark.parametrize("isa", cpu_isas())


def _wrong(kind, name, args, error, message, **named):
    return Invalid(kind, Call(name, args, named), error, message)


INVALID = {
    "conv3x3": (
        _wrong("dtype", "int", (X.int(), WEIGHT), TypeError, "x must be float32 .* got int32"),
        _wrong("rank", "map", (X[0], WEIGHT), ValueError,
               r"x must be of 4 dimensions, got shape \[8, 3, 4\]"),
        _wrong("size", "no channel", (X[:, :0], WEIGHT[:, :0]), ValueError,
               r"x must be \[B, C, H, W\] with C, H, W > 0, got shape \[1, 0, 3, 4\]"),
        _wrong("dtype", "another weight", (X, WEIGHT.half()), TypeError,
               "weight must be float32, got float16"),
        _wrong("size", "no feature", (X, WEIGHT[:0]), ValueError,
               r"weight must be \[F, C, 3, 3\] with F > 0, got shape \[0, 8, 3, 3\]"),
        _wrong("device", "bias elsewhere", (X, WEIGHT, torch.zeros(16, device="meta")), ValueError,
               "bias must be on cpu like x, got meta"),
        _wrong("size", "filter", (X, torch.zeros(16, 8, 5, 5)), ValueError,
               r"weight must be of shape \[F, C, 3, 3\] = \[16, 8, 3, 3\], got \[16, 8, 5, 5\]"),
        _wrong("size", "panels", (X, PANELS[:, :-1]), ValueError,
               r"weight must be of shape \[F / 16, 9 C, 16\] = \[1, 72, 16\], got \[1, 71, 16\]"),
        _wrong("size", "bias", (X, WEIGHT, torch.zeros(8)), ValueError,
               r"bias must be of shape \[F\] = \[16\], got \[8\]"),
        _wrong("size", "residual", (X, WEIGHT, None, X), ValueError,
               r"residual must be of shape \[B, F, H, W\] = \[1, 16, 3, 4\], got \[1, 8, 3, 4\]"),
        _wrong("size", "upscaled", (X, WEIGHT, None, torch.zeros(1, 16, 3, 4)), ValueError,
               "residual must be None with an upscale_factor, got a tensor", upscale_factor=2),
        _wrong("size", "factor", (X, WEIGHT), ValueError,
               "upscale_factor must be from 1 to 16, and its square a divisor of F = 16, got 3",
               upscale_factor=3),
        _wrong("size", "no factor", (X, WEIGHT), ValueError,
               "upscale_factor must be from 1 to 16, .* got 0", upscale_factor=0),
    )
}  # fmt: skip


def test_every_tap_meets_its_pixel():
    """Of a map of distinct numbers, with filters of a single one."""
    x = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    weight = torch.zeros(16, 1, 3, 3)
    weight.view(16, 9)[torch.arange(9), torch.arange(9)] = 1.0
    y = conv3x3(x, panels(weight))
    around = F.pad(x[0, 0], (1, 1, 1, 1))
    for tap in range(9):
        di, dj = divmod(tap, 3)
        assert torch.equal(y[0, tap], around[di : di + 3, dj : dj + 4])
    assert not y[0, 9:].any()


def test_channels_go_to_a_square_of_pixels():
    x, weight = torch.randn(2, 4, 3, 5), torch.randn(64, 4, 3, 3)
    y = conv3x3(x, panels(weight), upscale_factor=2)
    plain = conv3x3(x, panels(weight))
    assert y.shape == (2, 16, 6, 10)
    for di in range(2):
        for dj in range(2):
            first = (2 * di + dj) * 16
            assert torch.equal(y[:, :, di::2, dj::2], plain[:, first : first + 16])


@ISAS
def test_a_pixel_has_the_same_bits_in_every_batch_and_map(isa):
    """And with any number of threads; where the pixels that the filter meets are the same."""
    x, weight = torch.randn(3, 70, 9, 11), panels(torch.randn(80, 70, 3, 3))
    residual = torch.randn(3, 80, 9, 11)
    with cpu_isa(isa):
        whole = conv3x3(x, weight, None, residual, backend="cpu")
        for threads in (2, 7):
            with cpu_threads(threads):
                assert torch.equal(conv3x3(x, weight, None, residual, backend="cpu"), whole)
        for i in range(3):
            one = conv3x3(x[i : i + 1], weight, None, residual[i : i + 1], backend="cpu")
            assert torch.equal(one[0], whole[i])
        inner = (..., slice(2, 8), slice(1, 10))
        part = conv3x3(x[inner], weight, None, residual[inner], backend="cpu")
    assert torch.equal(part[:, :, 1:-1, 1:-1], whole[:, :, 3:7, 2:9])


@ISAS
def test_values_are_exact(isa):
    """Sums of small integers are the same in every order; maps of one row, one column, and many."""
    for B, C, H, W, features in ((2, 130, 6, 5, 48), (5, 33, 1, 9, 80), (4, 16, 40, 1, 16)):
        x = torch.randint(-2, 3, (B, C, H, W)).float()
        weight = torch.randint(-2, 3, (features, C, 3, 3)).float()
        bias = torch.arange(float(features))
        expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
        with cpu_isa(isa), cpu_threads(2):
            assert torch.equal(conv3x3(x, panels(weight), bias, backend="cpu").double(), expected)


def test_a_call_that_requires_grad_is_refused():
    with pytest.raises(RuntimeError, match="conv3x3"):
        conv3x3(X, WEIGHT.clone().requires_grad_())


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason="the C++ module was not built here")
def test_is_captured():
    x, weight = torch.randn(2, 8, 5, 6), panels(torch.randn(32, 8, 3, 3))
    residual = torch.randn(2, 32, 5, 6)
    graph = CpuGraph()
    y = graph.capture(lambda: conv3x3(x, weight, None, residual))
    x.normal_()
    residual.normal_()
    graph.replay()
    assert torch.equal(y, conv3x3(x, weight, None, residual))
