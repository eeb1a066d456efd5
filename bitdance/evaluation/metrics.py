"""Numbers that compare images and codes."""

from __future__ import annotations

import math

import torch

from bitdance_kernels import bit_counts

__all__ = ["bit_usage", "psnr"]


def psnr(mean_squared_error: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, infinite without an error.

    Args:
        mean_squared_error: mean squared error of the values.
        peak: largest difference that two values can have.
    """
    if mean_squared_error == 0:
        return math.inf
    return 10 * math.log10(peak**2 / mean_squared_error)


def bit_usage(packed: torch.Tensor) -> list[float]:
    """Share of ones in each channel of packed codes [..., C / 8]."""
    counts = bit_counts(packed.flatten(0, -2))
    return (counts.double() / (packed.numel() // packed.shape[-1])).tolist()
