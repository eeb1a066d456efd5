"""Sizes that images of any shape are resized and cropped to."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bitdance.io.validation import exact_int

__all__ = ["aspect_sizes", "nearest_size"]


def aspect_sizes(max_pixels: int, multiple: int, max_ratio: float = 2.0) -> list[tuple[int, int]]:
    """Heights and widths of at most `max_pixels`, for every aspect ratio up to `max_ratio`.

    Args:
        max_pixels: most pixels of an image.
        multiple: number that divides all sides.
        max_ratio: largest ratio of the longer to the shorter side.

    Returns:
        The largest square, and for each shorter side the longest other one, upright and lying.

    Raises:
        ValueError: not even `multiple` x `multiple` pixels fit, or the ratio is below 1.

    Example:
        >>> aspect_sizes(64 * 64, 16)
        [(48, 80), (64, 64), (80, 48)]
    """
    name = "aspect_sizes"
    multiple = exact_int(name, "multiple", multiple, minimum=1)
    max_pixels = exact_int(name, "max_pixels", max_pixels, minimum=multiple**2)
    if not 1 <= max_ratio < math.inf:
        raise ValueError(f"{name}: max_ratio must be a number from 1, got {max_ratio}")
    square = math.isqrt(max_pixels) // multiple * multiple
    sizes = {(square, square)}
    for short in range(multiple, square + 1, multiple):
        long = max_pixels // short // multiple * multiple
        if long <= max_ratio * short:
            sizes |= {(short, long), (long, short)}
    return sorted(sizes)


def nearest_size(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size whose aspect ratio is nearest to that of an image; of equal ones the largest."""

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        ratio = math.log(height * size[1] / (width * size[0]))
        return round(abs(ratio), 9), -size[0] * size[1]

    return min(sizes, key=distance)
