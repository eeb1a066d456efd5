import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import BackendError, dequantize_rows, linear_fp8, quantize_rows
from bitdance_kernels.testing import Call, Invalid

X, B = torch.zeros(3, 32), torch.zeros(16)
W, S = quantize_rows(torch.zeros(16, 32))

INVALID = {
    "linear_fp8": (
        Invalid("dtype", Call("x", (X.int(), W, S)), TypeError, "x must be float32 .* got int32"),
        Invalid("dtype", Call("weight", (X, W.float(), S)), TypeError,
                "weight must be uint8, got float32"),
        Invalid("dtype", Call("scale", (X, W, S.half())), TypeError,
                "weight_scale must be float32 or float64, got float16"),
        Invalid("dtype", Call("bias", (X, W, S, B.half())), TypeError,
                "bias must be float32, got float16"),
        Invalid("rank", Call("packed", (X, W.view(1, 2, 32, 8), S)), ValueError,
                r"weight must be of 2 dimensions, got shape \[1, 2, 32, 8\]"),
        Invalid("size", Call("channels", (X[:, :16], W, S)), ValueError,
                r"weight must be of shape \[F, C\] = \[16, 16\], got \[16, 32\]"),
        Invalid("size", Call("scales", (X, W, S[:8])), ValueError,
                r"weight_scale must be of shape \[F\] = \[16\], got \[8\]"),
        Invalid("size", Call("bias", (X, W, S, B[:8])), ValueError,
                r"bias must be of shape \[F\] = \[16\], got \[8\]"),
        Invalid("size", Call("no channel", (X[:, :0], W[:, :0], S)), ValueError,
                r"x must be \[..., C\] with C > 0, got shape \[3, 0\]"),
        Invalid("device", Call("meta", (X, W.to("meta"), S)), ValueError,
                "weight must be on cpu like x, got meta"),
    )
}  # fmt: skip


def _all_values():
    """Every finite value of e4m3, and what lies halfway between two of them or beside that."""
    values = torch.arange(0, 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (values[1:] + values[:-1]) / 2
    near = torch.cat([torch.nextafter(ties, values[1:]), torch.nextafter(ties, values[:-1])])
    sizes = torch.cat([values, ties, near, torch.tensor([2.0**-11, 1e-30, 448.0])])
    return torch.cat([sizes, -sizes])


@pytest.mark.parametrize("power", [0, -20, 30])
def test_rows_are_rounded_to_the_nearest_value(power):
    x = _all_values() * 2.0**power
    values, scale = quantize_rows(x)
    assert scale == 2.0**power
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    grid = grid[grid.isfinite()]
    distance = (x.double()[:, None] / scale.double() - grid).abs().amin(-1)
    assert torch.equal(
        (values.view(torch.float8_e4m3fn).double() - x.double() / scale.double()).abs(), distance
    )


@pytest.mark.parametrize("largest", [448.0, 449.0, 896.0, 1.0, 1.75, 1.7500001, 0.02])
def test_scales_are_the_least_powers_of_two_that_hold_a_row(largest):
    values, scale = quantize_rows(torch.tensor([[largest, -largest / 3], [0.0, 0.0]]))
    assert largest / scale[0] <= 448 < 2 * largest / scale[0]
    assert scale[0].log2() == scale[0].log2().round()
    assert not values[1].any()
    assert not ((values & 0x7F) == 0x7F).any()  # NaN


def test_every_power_of_two_is_exact():
    rows = 2.0 ** torch.arange(-117, 128, dtype=torch.float64).float()[:, None]
    values, scale = quantize_rows(rows)
    assert torch.equal(scale, rows[:, 0] / 256)
    assert torch.equal(dequantize_rows(values, scale, torch.float32), rows)


@pytest.mark.filterwarnings("ignore")
def test_a_traced_program_has_the_same_values():
    values, scale = torch.arange(256, dtype=torch.uint8)[None], torch.ones(1)
    expected = dequantize_rows(values, scale, torch.float32)
    traced = torch.jit.trace(lambda v: dequantize_rows(v, scale, torch.float32), (values,))
    torch.testing.assert_close(traced(values), expected, rtol=0, atol=0, equal_nan=True)


def test_what_is_not_finite_becomes_nan_and_leaves_the_row():
    x = torch.tensor([[1.0, torch.inf, -torch.inf, torch.nan, 448.0]])
    values, scale = quantize_rows(x)
    assert torch.equal((values & 0x7F) == 0x7F, torch.tensor([[False, True, True, True, False]]))
    assert scale == 1


def test_rows_are_restored_exactly_in_every_dtype():
    values, scale = quantize_rows(torch.randn(8, 64))
    wide = dequantize_rows(values, scale, torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(dequantize_rows(values, scale, dtype).double(), wide)


def test_the_product_is_that_of_what_was_rounded():
    x, weight, bias = torch.randn(5, 32), torch.randn(16, 32), torch.randn(16)
    values, scale = quantize_rows(weight)
    dequantized = dequantize_rows(values, scale, torch.float32)
    assert torch.equal(linear_fp8(x, values, scale, bias), F.linear(x, dequantized, bias))
    rounded = dequantize_rows(*quantize_rows(x), torch.float32)
    expected = F.linear(rounded, dequantized, bias)
    assert torch.equal(linear_fp8(x, values, scale, bias, quantize_x=True), expected)


def test_triton_rounds_rows_to_the_same_bits():
    """Each row by the identity, whose product has one addend."""
    x = _all_values()
    x = torch.stack([x * 2.0**power for power in range(-40, 40, 7)])
    width = -x.shape[-1] % 16
    x = F.pad(x, (0, width))
    x[3, 5] = torch.nan
    x[4, 6] = torch.inf
    x[5] = 0
    eye, one = quantize_rows(torch.eye(x.shape[-1]))
    for rows in (x, x[:, :16].contiguous()):
        weight = eye[: rows.shape[-1], : rows.shape[-1]]
        scale = one[: rows.shape[-1]]
        expected, actual = (
            linear_fp8(rows, weight, scale, quantize_x=True, backend=backend)
            for backend in ("reference", "triton")
        )
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_cases_that_triton_refuses():
    with pytest.raises(BackendError, match="it is for quantize_x=True"):
        linear_fp8(X, W, S, backend="triton")
    odd, scale = quantize_rows(torch.zeros(16, 30))
    with pytest.raises(BackendError, match="multiples of 16, got 30"):
        linear_fp8(X[:, :30], odd, scale, quantize_x=True, backend="triton")


def test_gradients_are_refused():
    with pytest.raises(RuntimeError, match="linear_fp8"):
        linear_fp8(X.clone().requires_grad_(), W, S)
