"""Bits as a black and white image, and as a file."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

__all__ = ["bit_map", "npy_file", "unpack_bits"]

_LINE = 128  # gray between two codes


def unpack_bits(packed: np.ndarray, channels: int) -> np.ndarray:
    """Packed bits uint8 [..., ceil(C / 8)] as uint8 [..., C] of 0 and 1."""
    return np.unpackbits(packed, axis=-1, count=channels, bitorder="little")


def bit_map(bits: np.ndarray) -> Image.Image:
    """Bits as an image with a pixel for each: white for 1, black for 0.

    The C bits of a code are a rectangle, row by row, as square as C allows; it lies where the code
    lies in the picture. Gray lines are between codes.

    Args:
        bits: uint8 [h, w, C] of 0 and 1.
    """
    h, w, channels = bits.shape
    rows = max(n for n in range(1, math.isqrt(channels) + 1) if channels % n == 0)
    cells = bits.reshape(h, w, rows, channels // rows).transpose(0, 2, 1, 3) * np.uint8(255)
    lined = np.full((h, rows + 1, w, channels // rows + 1), _LINE, np.uint8)
    lined[:, :-1, :, :-1] = cells
    whole = lined.reshape(h * (rows + 1), w * (channels // rows + 1))
    return Image.fromarray(whole[:-1, :-1].copy())


def npy_file(array: np.ndarray) -> bytes:
    """The content of a ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
