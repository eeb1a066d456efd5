import pytest
import torch
from safetensors.torch import load_file

from bitdance_kernels import rope
from bitdance_kernels.testing import Call, Invalid
from tests.test_ranges import golden_cases

X = torch.zeros(2, 3, 4, 8)
TABLE = torch.zeros(3, 4, 2)


def _row(kind, name, args, error, match):
    return Invalid(kind, Call(name, args), error, f"rope: {match}")


INVALID = {
    "rope": (
        _row("dtype", "int x", (X.int(), TABLE), TypeError, "x must be float32 .* got int32"),
        _row(
            "dtype", "int table", (X, TABLE.int()), TypeError, "freqs must be float32 .* got int32"
        ),
        _row("rank", "x without batch", (X[0], TABLE), ValueError, "x must be of 4 dimensions"),
        _row(
            "size",
            "odd D",
            (X[..., :7], TABLE),
            ValueError,
            r"x must be \[B, T, H, D\] with D even, got",
        ),
        _row(
            "size",
            "no D",
            (X[..., :0], TABLE[:, :0]),
            ValueError,
            r"x must be \[B, T, H, D\] with D even",
        ),
        _row(
            "size",
            "tokens",
            (X, TABLE[:2]),
            ValueError,
            r"freqs must be of shape .* = \[3, 4, 2\], got \[2, 4, 2\]",
        ),
        _row(
            "device",
            "table elsewhere",
            (X, TABLE.to("meta")),
            ValueError,
            "freqs must be on cpu like x",
        ),
    )
}

PAIRS = pytest.mark.parametrize("interleaved", [True, False])


def _table(T, D, dtype=torch.float64):
    angles = torch.rand(T, D // 2, dtype=dtype) * 6
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


@PAIRS
def test_is_a_complex_product(interleaved):
    x, freqs = torch.randn(2, 5, 3, 8, dtype=torch.float64), _table(5, 8)
    out = rope(x, freqs, interleaved=interleaved)
    a, b = (0, 1) if interleaved else (0, 4)
    step = 2 if interleaved else 1
    for pair in range(4):
        z = torch.complex(x[..., a + step * pair], x[..., b + step * pair])
        turned = z * torch.complex(*freqs[:, pair].unbind(-1))[:, None]
        torch.testing.assert_close(out[..., a + step * pair], turned.real)
        torch.testing.assert_close(out[..., b + step * pair], turned.imag)


@PAIRS
def test_gradcheck(interleaved):
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    freqs = _table(3, 4)
    assert torch.autograd.gradcheck(lambda x: rope(x, freqs, interleaved=interleaved), x)


def test_a_table_that_requires_grad_is_refused():
    """Its gradient would be missing in silence."""
    x, freqs = torch.randn(1, 3, 1, 4, requires_grad=True), _table(3, 4, torch.float32)
    with pytest.raises(RuntimeError, match="rope: has no gradient, but freqs requires grad"):
        rope(x, freqs.requires_grad_())
    rope(x, freqs.detach()).sum().backward()
    assert x.grad is not None


def test_result_is_contiguous_for_any_order_of_dimensions():
    x = torch.randn(2, 3, 8, 5).permute(0, 3, 1, 2)
    freqs = _table(5, 8, torch.float32)
    out = rope(x, freqs)
    assert out.is_contiguous()
    assert torch.equal(out, rope(x.contiguous(), freqs))


@golden_cases(lambda text: "apply_rotary_emb" in text.get("official", ""))
def test_rotation_of_the_official_code(path, description):
    tensors = load_file(path.with_suffix(".safetensors"))
    out = rope(tensors["in.q"], tensors["out.freqs_cis"])
    torch.testing.assert_close(out, tensors["out.rotary"])
