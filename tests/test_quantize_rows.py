"""Rows of int8 values; those of float8 are tested with their product."""

import pytest
import torch

from bitdance_kernels import dequantize_rows, quantize_rows


def _ties():
    """Every value, and what lies halfway between two of them or beside that."""
    values = torch.arange(-127, 128).float()
    halves = values[1:] - 0.5
    near = [torch.nextafter(halves, halves + side) for side in (-1.0, 1.0)]
    return torch.cat([values, halves, *near])


@pytest.mark.parametrize("power", [0, -100, 100])
def test_elements_are_rounded_to_nearest_ties_to_even(power):
    x = _ties()
    values, scale = quantize_rows(x * 2.0**power, torch.int8)
    assert values.dtype == torch.int8
    assert scale == 2.0**power
    assert torch.equal(values.double(), x.double().round())  # which rounds ties to even
    assert torch.equal(dequantize_rows(values, scale, torch.float32), values.float() * 2.0**power)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_have_scales_of_their_own(dtype):
    x = (torch.randn(3, 40, 50) * torch.logspace(-3, 3, 40)[:, None]).to(dtype)
    values, scales = quantize_rows(x, torch.int8)
    largest = x.float().abs().amax(-1)
    assert torch.equal(scales, largest / 127)
    assert torch.equal(values.int().abs().amax(-1), torch.full((3, 40), 127, dtype=torch.int32))
    error = (dequantize_rows(values, scales, torch.float64) - x.double()).abs()
    assert (error <= (0.5 + 2.0**-16) * scales[..., None].double()).all()  # a scale is rounded
    assert dequantize_rows(values, scales, dtype).dtype == dtype
    transposed, same = quantize_rows(x.mT.contiguous().mT, torch.int8)
    assert torch.equal(transposed, values)
    assert torch.equal(same, scales)


def test_rows_of_zeros_and_of_tiny_values_are_near_what_they_were():
    x = torch.tensor([[0.0, -0.0], [1e-45, 0.0], [2.0**-126, -(2.0**-127)], [1e-38, 3e-39]])
    values, scales = quantize_rows(x, torch.int8)
    assert scales.isfinite().all()
    assert (scales > 0).all()
    assert not values[0].any()
    assert ((dequantize_rows(values, scales, torch.float64) - x).abs() <= scales[:, None] / 2).all()


def test_the_largest_values_do_not_overflow():
    x = torch.tensor([[torch.finfo(torch.float32).max, -1e38]])
    values, scales = quantize_rows(x, torch.int8)
    assert values.tolist() == [[127, -37]]
    assert dequantize_rows(values, scales, torch.float32).isfinite().all()


def test_bad_arguments():
    x = torch.ones(2, 3)
    for bad in (torch.inf, -torch.inf, torch.nan):
        x[1, 2] = bad
        with pytest.raises(ValueError, match=r"quantize_rows: x must be finite for torch\.int8"):
            quantize_rows(x, torch.int8)
    with pytest.raises(ValueError, match="x must be finite"):
        quantize_rows(torch.full((1, 2), 1e300, dtype=torch.float64), torch.int8)
    for dtype in (torch.uint8, torch.float8_e5m2, torch.float32, "int8"):
        with pytest.raises(ValueError, match=r"dtype must be torch\.float8_e4m3fn or torch\.int8"):
            quantize_rows(torch.ones(2, 3), dtype)
    with pytest.raises(ValueError, match=r"x must be \[..., C\] with C > 0"):
        quantize_rows(torch.ones(2, 0), torch.int8)
    with pytest.raises(TypeError, match="x must be float32"):
        quantize_rows(torch.ones(2, 3, dtype=torch.int32), torch.int8)
