import pytest
import torch

from bitdance_kernels import adaln_norm, gated_residual, gated_residual_adaln
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads

X = torch.zeros(3, 8)
_SHARED = (
    ("dtype", "int x", (X.int(), X, X), TypeError, "x must be float32 .* got int32"),
    ("dtype", "int gate", (X, X, X.int()), TypeError, "gate must be float32 .* got int32"),
    ("rank", "scalar", (X[0, 0], X[0, 0], X[0, 0]), ValueError, "x must be of at least 1 dim"),
    ("size", "row of h", (X, X[:1], X), ValueError, r"h must be of shape that of x = \[3, 8\]"),
    ("device", "gate elsewhere", (X, X, X.to("meta")), ValueError, "gate must be on cpu like x"),
)  # fmt: skip
INVALID = {
    "gated_residual": tuple(
        Invalid(kind, Call(name, args), error, match) for kind, name, args, error, match in _SHARED
    ),
    "gated_residual_adaln": (
        *(
            Invalid(kind, Call(name, (*args, args[0], args[0])), error, match)
            for kind, name, args, error, match in _SHARED
        ),
        Invalid(
            "size",
            Call("bias", (X,) * 5, {"bias": torch.ones(7)}),
            ValueError,
            r"bias must be of shape \[C\] = \[8\], got \[7\]",
        ),
    ),
}


def _arguments(count, dtype=torch.float64):
    return [torch.randn(2, 3, 6, dtype=dtype, requires_grad=True) for _ in range(count)]


def test_formula():
    x, h, gate = _arguments(3)
    torch.testing.assert_close(gated_residual(x, h, gate), x + gate * h)


def test_gradcheck():
    assert torch.autograd.gradcheck(gated_residual, _arguments(3))
    affine = [torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(gated_residual_adaln, _arguments(5))
    assert torch.autograd.gradcheck(gated_residual_adaln, _arguments(5) + affine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fusing_changes_no_bit(dtype):
    x, h, gate, scale, shift = _arguments(5, dtype)
    total, normed = gated_residual_adaln(x, h, gate, scale, shift)
    assert torch.equal(total, gated_residual(x, h, gate))
    assert torch.equal(normed, adaln_norm(total, scale, shift))


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_size_changes_no_bit(isa, threads):
    """Large sums of float32 may be written past the caches, from an address within a vector on."""
    x, h, gate = torch.randn(3, 1057, 1001).unbind()  # more than 4 MiB each
    with cpu_isa(isa), cpu_threads(threads):
        whole = gated_residual(x, h, gate, backend="cpu")
        parts = [
            gated_residual(*rows, backend="cpu")
            for rows in zip(x.split(50), h.split(50), gate.split(50), strict=True)
        ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_follow_each_other_are_what_others_are(isa, threads, dtype):
    apart = torch.randn(300, 3, 37).to(dtype)
    with cpu_isa(isa), cpu_threads(threads):
        expected = gated_residual(*apart.unbind(1))
        assert torch.equal(gated_residual(*(t.contiguous() for t in apart.unbind(1))), expected)
        repeated = gated_residual(apart[:, 0].contiguous(), apart[:, 1].contiguous(), apart[:1, 2])
        assert torch.equal(repeated[5], gated_residual(*apart[5, :2], apart[0, 2]))


@pytest.mark.parametrize("used", [0, 1])
def test_gradients_when_only_one_result_is_used(used):
    arguments = _arguments(5)
    fused = gated_residual_adaln(*arguments)[used]
    x, h, gate, scale, shift = arguments
    total = gated_residual(x, h, gate)
    plain = (total, adaln_norm(total, scale, shift))[used]
    actual = torch.autograd.grad(fused.sum(), arguments, allow_unused=True)
    expected = torch.autograd.grad(plain.sum(), arguments, allow_unused=True)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_repeated_are_read_where_they_are(isa, dtype, monkeypatch):
    """[B, 1, C] and [C] for [B, T, C]: the bits are those of copies, gradients too."""
    from bitdance_kernels.denoise._shared import rows_cpu

    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5, 24), (3, 5, 24), (3, 1, 24), (3, 1, 24), (24,)]
    given = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    whole = [*given[:2], *(t.expand(3, 5, 24).contiguous() for t in given[2:])]
    grads = torch.randn(2, 3, 5, 24, generator=generator).to(dtype).unbind()
    monkeypatch.setattr(rows_cpu, "as_rows", None)  # nothing is copied
    results = []
    with cpu_isa(isa):
        for tensors in (given, whole):
            leaves = [t.clone().requires_grad_() for t in tensors]
            full = [t.expand(3, 5, 24) for t in leaves]
            outputs = gated_residual_adaln(*full, backend="cpu")
            results.append([*outputs, *torch.autograd.grad(outputs, full, grads)])
        normed = adaln_norm(given[0], *given[3:], backend="cpu")
        assert torch.equal(normed, adaln_norm(whole[0], *whole[3:], backend="cpu"))
    assert all(map(torch.equal, *results))
