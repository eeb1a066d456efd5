"""Rows of float8 or int8 values, each with a scale.

Float8 values (e4m3: 4 bits of exponent, 3 of mantissa) are bytes, the bits of
``torch.float8_e4m3fn``: few functions take that dtype, and those that cast a whole module would
take the values for weights without a scale. Their scales are powers of two, so that a value times
its scale is exact in every floating dtype whose range it lies in. A scale that fills the range
exactly would gain nothing: the relative error of a value depends on its place within a binade, of
which every row covers many.

Int8 values are evenly spaced, and their scale is the largest value of the row over 127.
"""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._shared import checks

__all__ = ["dequantize_rows", "quantize_rows"]

FLOAT8 = torch.float8_e4m3fn
_LARGEST = 127  # of int8, in either direction
# A scale below the normal numbers has few bits; of a row of zeros it may be any. By the largest
# scale, the largest value stays finite.
_MIN_SCALE = torch.finfo(torch.float32).tiny
_MAX_SCALE = torch.finfo(torch.float32).max / _LARGEST * (1 - 2**-23)


def quantize_rows(
    x: torch.Tensor, dtype: torch.dtype = FLOAT8
) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in float8 or int8 with a scale for each row.

    Args:
        x: [..., C], floating point, any strides.
        dtype: ``torch.float8_e4m3fn`` or ``torch.int8``.

    Returns:
        The values, the bits of float8_e4m3fn as uint8 [..., C] or int8 [..., C] from -127 to 127,
        and the scales, float32 [...]. In float8 these are the least powers of two by which the
        values are within the range, and NaN and infinity become NaN. In int8 they are the largest
        magnitude of the row over 127, at least 2^-126. Elements are rounded to nearest, ties to
        even.

    Raises:
        TypeError: `x` is no tensor, or not floating point.
        ValueError: it has no channel; there is no such dtype; or for int8 an element is not finite
            in float32.

    Example:
        >>> import torch
        >>> values, scales = quantize_rows(torch.tensor([[448.0, 1.1], [0.3, 0.01]]))
        >>> dequantize_rows(values, scales, torch.bfloat16).tolist()
        [[448.0, 1.125], [0.3125, 0.009765625]]
        >>> quantize_rows(torch.tensor([[-254.0, 3.0, 9.0]]), torch.int8)
        (tensor([[-127,    2,    4]], dtype=torch.int8), tensor([2.]))
    """
    arguments.tensor("quantize_rows", "x", x)
    checks.dtype("quantize_rows", "x", x, checks.FLOATS)
    checks.rank("quantize_rows", "x", x, 1)
    if x.shape[-1] == 0:
        raise checks.fail("quantize_rows", "x", "[..., C] with C > 0", f"shape {list(x.shape)}")
    if dtype == torch.int8:
        return _int8_rows(x.float())
    if dtype != FLOAT8:
        raise checks.fail("quantize_rows", "dtype", f"{FLOAT8} or torch.int8", dtype)
    values, scale = split_rows(x)
    return values.view(torch.uint8), scale


def _int8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not x.isfinite().all():
        raise checks.fail("quantize_rows", "x", "finite for torch.int8", "NaN or infinity")
    scale = (x.abs().amax(-1) / _LARGEST).clamp(_MIN_SCALE, _MAX_SCALE)
    return (x / scale[..., None]).round().to(torch.int8), scale


def split_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float8 values in their own dtype, and the scales."""
    x = x.float()
    largest = x.abs().nan_to_num(nan=0.0, posinf=0.0).amax(-1)
    mantissa, exponent = torch.frexp(largest)  # in [0.5, 1); the largest value is 0.875 2^9
    scale = torch.exp2((exponent - 9 + (mantissa > 0.875).int()).clamp_min(-126).float())
    return torch.where(x.isinf(), torch.nan, x / scale[..., None]).to(FLOAT8), scale


def dequantize_rows(values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What ``quantize_rows`` has quantized.

    Args:
        values: bits of float8_e4m3fn, uint8 [..., C]; or int8 [..., C].
        scales: [...].
        dtype: dtype of the result.

    Returns:
        [..., C], each row times its scale, rounded once.
    """
    wide = torch.promote_types(scales.dtype, dtype)
    return (_widened(values).to(wide) * scales[..., None]).to(dtype)


def _widened(values: torch.Tensor) -> torch.Tensor:
    """The values, in some dtype that has a conversion to all others."""
    if values.dtype == torch.int8:
        return values
    if not torch.jit.is_tracing():  # type: ignore[attr-defined]
        return values.view(FLOAT8)
    size = values.int() & 0x7F  # torch.jit.trace cannot record a view of another dtype
    exponent = size >> 3
    units = (size & 7) + 8 * (exponent > 0).int() << (exponent - 1).clamp_min(0)
    wide = torch.where(size == 0x7F, torch.nan, units.float() * 2.0**-9)
    return torch.where(values > 0x7F, -wide, wide)
