"""Tiles of the fused products: what a program takes at a time.

Untuned until a card has decided; shapes and dtype choose alone, so that a captured graph stays
valid. All compile for sm_80, sm_90 and sm_100 without spills.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

FEW_ROWS = 64
"""Rows up to which a product waits for its weights: one tile then has them all."""

MULTIPROCESSORS = 132
"""Of an H200: few rows are cut into tiles of so few features that there is one for each."""


class Tiles(NamedTuple):
    """A tile of the result, [rows, features], and how it is made.

    Attributes:
        rows: of x.
        features: of each half, where there are two.
        depth: channels read at a time.
        warps: of a program.
        stages: loads on their way.
        group: tiles of rows that share the features in the cache.
    """

    rows: int
    features: int
    depth: int
    warps: int
    stages: int
    group: int = 8


def tiles(
    rows: int,
    features: int,
    dtype: torch.dtype,
    *,
    norm: bool,
    swiglu: bool,
    gated: bool,
    aligned: bool,
    capability: int,
) -> Tiles:
    """How a product of [rows, C] with [features, C] (twice for `swiglu`) is cut.

    Norms hold tiles of x, scale and shift in registers, the gated sum those of the stream and the
    gate, float32 both operands, and rows that are not `aligned` to 16 bytes an offset for every
    element: they take smaller tiles. A card of compute `capability` 8.6, 8.9 or 12.x, such as 86,
    has 99 KB of shared memory a block, and room for two loads on their way.
    """
    wide = dtype == torch.float32  # on the ordinary cores
    cut = _aligned(rows, features, wide, norm, swiglu, gated)
    if not aligned:
        cut = cut._replace(features=min(cut.features, 32), depth=16 if wide else 32, warps=8)
    return cut._replace(stages=2) if capability in (86, 89) or capability >= 120 else cut


def _aligned(rows: int, features: int, wide: bool, norm: bool, swiglu: bool, gated: bool) -> Tiles:
    if rows <= FEW_ROWS:
        return _few(rows, features, wide, norm)
    if wide:
        return Tiles(64, 32 if swiglu or norm else 64, 16 if norm else 32, warps=8, stages=2)
    if norm:
        return Tiles(64, 64, 32, warps=4, stages=3)
    if rows < 512:
        return Tiles(64, 64, 64, warps=8, stages=3)
    return Tiles(128, 64 if swiglu or gated else 128, 64, warps=8, stages=3)


def _few(rows: int, features: int, wide: bool, norm: bool) -> Tiles:
    height = 16 if rows <= 16 else 32 if rows <= 32 else 64
    width = 16
    while width < (32 if wide else 64) and features >= 2 * width * MULTIPROCESSORS:
        width *= 2
    if wide:
        return Tiles(height, width, 16, warps=8, stages=2)
    if norm:
        rest = {16: (64, 4, 3), 32: (64, 8, 2), 64: (32, 4, 3)}
        return Tiles(height, width, *rest[height])
    return Tiles(height, width, 128, warps=4, stages=3)
