import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import denoise_schedule, denoise_step, denoise_step_linear, pack_weight
from bitdance_kernels.testing import Call, Invalid

TABLE = denoise_schedule(3)[0]
X, W, B, STEP = torch.zeros(2, 8), torch.zeros(16, 8), torch.zeros(16), torch.tensor([1])
GIVEN = {"noise": X}
INVALID = {
    "denoise_step_linear": (
        Invalid("dtype", Call("x", (X.half(), X, TABLE, STEP, W, B), GIVEN), TypeError,
                "x must be float32 or float64, got float16"),
        Invalid("dtype", Call("weight", (X, X, TABLE, STEP, W.int(), B), GIVEN), TypeError,
                "weight must be float32 .* int32"),
        Invalid("dtype", Call("bias", (X, X, TABLE, STEP, W.half(), B), GIVEN), TypeError,
                "bias must be float16, got float32"),
        Invalid("rank", Call("weight", (X, X, TABLE, STEP, W[0], B), GIVEN), ValueError,
                "weight must be of 2 dimensions"),
        Invalid("size", Call("width", (X, X, TABLE, STEP, W[:, :7], B), GIVEN), ValueError,
                r"weight must be of shape \[F, C\] = \[16, 8\], got \[16, 7\]"),
        Invalid("size", Call("features", (X, X, TABLE, STEP, W[:8], None), GIVEN), ValueError,
                r"weight must be \[F, D\] with F a multiple of 16, got shape \[8\]"),
        Invalid("size", Call("bias", (X, X, TABLE, STEP, W, B[:8]), GIVEN), ValueError,
                r"bias must be of shape \[F\] = \[16\], got \[8\]"),
        Invalid("size", Call("x0", (X, X[:1], TABLE, STEP, W, B), GIVEN), ValueError,
                r"x0 must be of shape \[2, 8\], got \[1, 8\]"),
        Invalid("size", Call("guided", (X, X, TABLE, STEP, W, B), {**GIVEN, "cfg": 2.0}),
                ValueError, r"x0 must be of shape \[2 R, ...\] = \[4, 8\], got \[2, 8\]"),
        Invalid("value", Call("step", (X, X, TABLE, 4, W, B), GIVEN), ValueError,
                r"step must be in \[0, 4\), got 4"),
        Invalid("value", Call("no noise", (X, X, TABLE, STEP, W, B)), ValueError,
                "noise or keys must be given, one of the two, got neither"),
        Invalid("device", Call("weight elsewhere", (X, X, TABLE, STEP, W.to("meta"), None), GIVEN),
                ValueError, "weight must be on cpu like x, got meta"),
    )
}  # fmt: skip


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("cfg", [None, 3.0])
def test_is_the_step_and_the_product(cfg, squash):
    double = {"dtype": torch.float64}
    x, noise = torch.randn(2, 3, 4, 16, **double)
    x0 = torch.randn(3 if cfg is None else 6, 4, 16, **double)
    weight, bias = torch.randn(32, 16, **double), torch.randn(32, **double)
    step = {"cfg": None if cfg is None else torch.tensor(cfg, **double), "noise": noise}
    table = TABLE.double()
    prediction = torch.tanh(x0 / 2) if squash else x0  # 2 sigmoid(x) - 1
    expected = denoise_step(x, prediction, table, 2, **step)
    product = F.linear(expected, weight, bias)
    for given in (weight, pack_weight(weight)):
        state, stream, moments = denoise_step_linear(
            x, x0, table, 2, given, bias, squash=squash, **step
        )
        torch.testing.assert_close(state, expected)
        torch.testing.assert_close(stream, product if cfg is None else torch.cat([product] * 2))
        parts = stream.unflatten(-1, (2, 16))
        torch.testing.assert_close(moments[..., 0], parts.mean(-1))
        torch.testing.assert_close(moments[..., 1], parts.var(-1, correction=0) * 16)


def test_the_state_enters_the_product_in_the_dtype_of_the_weight():
    x, noise, weight = torch.randn(3, 16), torch.randn(3, 16), torch.randn(16, 16).bfloat16()
    state, stream, moments = denoise_step_linear(x, x, TABLE, 1, weight, None, noise=noise)
    assert torch.equal(state, denoise_step(x, x, TABLE, 1, noise=noise, backend="reference"))
    assert torch.equal(stream, F.linear(state.bfloat16(), weight))
    assert (state.dtype, stream.dtype, moments.dtype) == (
        torch.float32, torch.bfloat16, torch.float32,
    )  # fmt: skip


def test_has_no_gradient():
    with pytest.raises(RuntimeError, match="denoise_step_linear: has no gradient, but weight"):
        denoise_step_linear(X, X, TABLE, 1, W.clone().requires_grad_(), B, noise=X)
