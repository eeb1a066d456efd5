"""Rows of float8 values (e4m3: 4 bits of exponent, 3 of mantissa), each with a scale.

Values are bytes, the bits of ``torch.float8_e4m3fn``: few functions take that dtype, and those that
cast a whole module would take the values for weights without a scale.

Scales are powers of two, so that a value times its scale is exact in every floating dtype whose
range it lies in. A scale that fills the range exactly would gain nothing: the relative error of a
value depends on its place within a binade, of which every row covers many.
"""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._shared import checks

__all__ = ["dequantize_rows", "quantize_rows"]

DTYPE = torch.float8_e4m3fn


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in float8 with a scale for each row.

    Args:
        x: [..., C], floating point, any strides.

    Returns:
        The values, the bits of float8_e4m3fn as uint8 [..., C], and the scales, float32 [...]: the
        least powers of two by which the values are within the range. Elements are rounded to
        nearest, ties to even. NaN and infinity become NaN.

    Raises:
        TypeError: `x` is no tensor, or not floating point.
        ValueError: it has no channel.

    Example:
        >>> import torch
        >>> values, scales = quantize_rows(torch.tensor([[448.0, 1.1], [0.3, 0.01]]))
        >>> dequantize_rows(values, scales, torch.bfloat16).tolist()
        [[448.0, 1.125], [0.3125, 0.009765625]]
    """
    arguments.tensor("quantize_rows", "x", x)
    checks.dtype("quantize_rows", "x", x, checks.FLOATS)
    checks.rank("quantize_rows", "x", x, 1)
    if x.shape[-1] == 0:
        raise checks.fail("quantize_rows", "x", "[..., C] with C > 0", f"shape {list(x.shape)}")
    values, scale = split_rows(x)
    return values.view(torch.uint8), scale


def split_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``quantize_rows``, the values in their own dtype."""
    x = x.float()
    largest = x.abs().nan_to_num(nan=0.0, posinf=0.0).amax(-1)
    mantissa, exponent = torch.frexp(largest)  # in [0.5, 1); the largest value is 0.875 2^9
    scale = torch.exp2((exponent - 9 + (mantissa > 0.875).int()).clamp_min(-126).float())
    return torch.where(x.isinf(), torch.nan, x / scale[..., None]).to(DTYPE), scale


def dequantize_rows(values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What ``quantize_rows`` has quantized.

    Args:
        values: bits of float8_e4m3fn, uint8 [..., C].
        scales: [...].
        dtype: dtype of the result.

    Returns:
        [..., C], each row times its scale, rounded once.
    """
    wide = torch.promote_types(scales.dtype, dtype)
    return (_widened(values).to(wide) * scales[..., None]).to(dtype)


def _widened(values: torch.Tensor) -> torch.Tensor:
    """The values of bytes, in some floating dtype."""
    if not torch.jit.is_tracing():  # type: ignore[attr-defined]
        return values.view(DTYPE)
    size = values.int() & 0x7F  # torch.jit.trace cannot record a view of another dtype
    exponent = size >> 3
    units = (size & 7) + 8 * (exponent > 0).int() << (exponent - 1).clamp_min(0)
    wide = torch.where(size == 0x7F, torch.nan, units.float() * 2.0**-9)
    return torch.where(values > 0x7F, -wide, wide)
