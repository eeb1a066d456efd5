"""Tile sizes of the Triton kernels, by head dimension, bytes of a value and compute capability.

The largest of the usual ones that compile without spills for 8.0, 9.0 and 10.0. The forward ones of
9.0 are among the fastest of those on an H100 with Triton 3.6; the others are not tuned on cards.
`width` is the head dimension as a power of two, `size` the bytes of a value, `capability` such as
90. A block has 163 KB of shared memory on 8.0 and 227 KB on 9.0 and 10.x, but 99 KB on 8.6, 8.9 and
12.0, which also multiply matrices as 8.0 does.
"""

from __future__ import annotations

from typing import NamedTuple

# The widest head that the kernels keep in registers.
MAX_WIDTH = 128


class Tile(NamedTuple):
    """Queries and keys in a tile, and how a program runs over the tiles."""

    queries: int
    keys: int
    warps: int
    stages: int


def forward(width: int, size: int, capability: int) -> Tile:
    """Tile of the forward kernel."""
    if size == 4:
        return Tile(64, 32, 8, 2) if width == 64 else Tile(32, 32, 4, 1)
    if 100 <= capability < 110:
        return Tile(64, 64, 8, 2) if width <= 64 else Tile(64, 64, 4, 3)
    if capability == 90:
        return Tile(64, 64, 4, 3) if width <= 64 else Tile(128, 64, 8, 3)
    return Tile(128, 64, 8, 3) if width <= 64 else Tile(64, 64, 8, 2)


def query_tile(width: int, size: int, capability: int) -> Tile:
    """Tile of the kernel for the gradient of queries."""
    if size == 4:
        return Tile(32, 32, 8, 1) if width <= 64 else Tile(32, 32, 16, 1)
    if _large(capability):
        return Tile(128, 64, 8, 3) if width <= 64 else Tile(128, 64, 8, 2)
    return Tile(64, 64, 4, 2) if width <= 64 else Tile(64, 64, 8, 2)


def key_tile(width: int, size: int, capability: int) -> Tile:
    """Tile of the kernel for the gradients of keys and values."""
    if size == 4:
        return Tile(32, 32, 8, 1) if width <= 64 else Tile(16, 32, 8, 1)
    if _large(capability):
        if width <= 64:
            return Tile(64, 128, 8, 2)
        return Tile(32, 128, 8, 2) if capability < 100 else Tile(32, 64, 8, 2)
    return Tile(16, 128, 8, 2) if width <= 64 else Tile(32, 64, 8, 2)


def _large(capability: int) -> bool:
    return 90 <= capability < 110
