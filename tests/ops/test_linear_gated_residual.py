import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import linear_gated_residual, pack_weight
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads

X, W, B, R = torch.zeros(3, 8), torch.zeros(5, 8), torch.zeros(5), torch.zeros(3, 5)
P = torch.zeros(3, 4, 16)
INVALID = {
    "linear_gated_residual": (
        Invalid("dtype", Call("int", (X.int(), W.int(), None, R, R)), TypeError,
                "x must be float32 .* int32"),
        Invalid("dtype", Call("gate", (X, W, B, R, R.int())), TypeError,
                "gate must be float32 .* int32"),
        Invalid("rank", Call("weight", (X, W[0], B, R, R)), ValueError,
                "weight must be of 2 dimensions"),
        Invalid("size", Call("width", (X, W[:, :7], B, R, R)), ValueError,
                r"weight must be of shape \[F, C\] = \[5, 8\], got \[5, 7\]"),
        Invalid("size", Call("bias", (X, W, B[:4], R, R)), ValueError,
                r"bias must be of shape \[F\] = \[5\], got \[4\]"),
        Invalid("size", Call("residual", (X, W, B, R[:1], R)), ValueError,
                r"residual must be of shape \[..., F\] = \[3, 5\], got \[1, 5\]"),
        Invalid("size", Call("packed", (P[:, 0, 0], pack_weight(torch.zeros(16, 16)), None, P, P)),
                ValueError, "x must be .* C a multiple of 16 where weight is packed"),
        Invalid("size", Call("moments of 5", (X, W, B, R), {"return_moments": True}), ValueError,
                r"residual must be \[..., F\] with F a multiple of 16 where moments are returned"),
        Invalid("dtype", Call("flag", (X, W, B, R), {"return_moments": 1}), TypeError,
                "return_moments must be True or False, got 1"),
        Invalid("device", Call("gate elsewhere", (X, W, B, R, R.to("meta"))), ValueError,
                "gate must be on cpu like x, got meta"),
    )
}  # fmt: skip


def test_is_the_formula():
    shapes = ((2, 3, 6), (5, 6), (5,), (2, 3, 5), (2, 3, 5))
    x, weight, bias, residual, gate = (torch.randn(s, dtype=torch.float64) for s in shapes)
    expected = residual + gate * (x @ weight.T + bias)
    torch.testing.assert_close(linear_gated_residual(x, weight, bias, residual, gate), expected)
    without = linear_gated_residual(x, weight, None, residual, gate)
    torch.testing.assert_close(without, expected - gate * bias)
    ungated = linear_gated_residual(x, weight, bias, residual)
    torch.testing.assert_close(ungated, residual + x @ weight.T + bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_moments_are_those_of_the_rounded_result(dtype):
    x, weight = torch.randn(2, 3, 16).to(dtype), torch.randn(32, 16).to(dtype)
    residual, gate = (100 + torch.randn(2, 2, 3, 32)).to(dtype)
    for given in (gate, None):
        y, moments = linear_gated_residual(
            x, pack_weight(weight), None, residual, given, return_moments=True
        )
        assert torch.equal(y, linear_gated_residual(x, weight, None, residual, given))
        parts = y.double().view(2, 3, 2, 16)
        expected = torch.stack([parts.mean(-1), parts.var(-1, correction=0) * 16], dim=-1)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        torch.testing.assert_close(moments, expected.to(wide), rtol=1e-5, atol=1e-5)
        assert moments.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(3, 5), (33, 24), (150, 72), (600, 136)])
def test_small_integers_are_exact(rows, width, dtype):
    x = torch.randint(2, (rows, 48)) * 2 - 1
    weight, bias = torch.randint(-2, 3, (width, 48)), torch.randint(-8, 9, (width,))
    residual, gate = (torch.randint(-4, 5, (rows, width)) for _ in range(2))
    exact = residual + gate * F.linear(x.double(), weight.double(), bias.double())
    arguments = (t.to(dtype) for t in (x, weight, bias, residual, gate))
    actual = linear_gated_residual(*arguments)
    assert torch.equal(actual, exact.to(dtype))


@pytest.mark.parametrize("isa", cpu_isas())
def test_small_integers_in_panels_are_exact(isa):
    with cpu_isa(isa):
        for rows in (1, 3, 8, 9, 70):
            for channels, width in ((48, 16), (131, 96), (700, 32)):
                x, weight = (
                    torch.randint(-2, 3, (rows, channels)),
                    torch.randint(-2, 3, (width, channels)),
                )
                residual, gate = torch.randint(-8, 9, (2, rows, width)).float()
                x, weight = x.float(), weight.float()
                panels = pack_weight(weight, "panels")
                actual = linear_gated_residual(x, panels, None, residual, gate, backend="cpu")
                assert torch.equal(actual, residual + gate * F.linear(x, weight))
                actual = linear_gated_residual(x, panels, None, residual, backend="cpu")
                assert torch.equal(actual, residual + F.linear(x, weight))


@pytest.mark.parametrize("isa", cpu_isas())
def test_a_row_of_a_batch_is_the_row_alone(isa):
    x, weight, bias = torch.randn(13, 600), torch.randn(80, 600) / 24, torch.randn(80)
    residual, gate = torch.randn(13, 80), torch.randn(13, 240)[:, 80:160]
    panels = pack_weight(weight, "panels")
    with cpu_isa(isa):
        whole = linear_gated_residual(x, panels, bias, residual, gate, backend="cpu")
        for threads in (1, 2, 3):
            with cpu_threads(threads):
                again = linear_gated_residual(x, panels, bias, residual, gate, backend="cpu")
                assert torch.equal(again, whole)
                for i in range(13):
                    alone = linear_gated_residual(x[i], panels, bias, residual[i], gate[i])
                    assert torch.equal(alone, whole[i])


def test_has_no_gradient():
    with pytest.raises(RuntimeError, match="linear_gated_residual: has no gradient, but residual"):
        linear_gated_residual(X, W, B, R.clone().requires_grad_(), R)
