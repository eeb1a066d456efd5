"""How a product of few rows is spread over a card: see csrc/cuda/skinny_product.

The choice depends on shapes and the card alone, so that a captured graph stays valid. Shapes that
``python -m benchmarks gpu --only decide`` has timed on a card of this name are in
``skinny_measured.json``; a rule chooses for all others.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["MAX_ROWS", "Launch", "candidates", "choose", "row_class"]

MAX_ROWS = 128
MEASURED = Path(__file__).with_name("skinny_measured.json")

_CLASSES = (8, 32, 64, 128)  # the kernel is compiled for so many rows
_MAX_WARPS = {8: 16, 32: 18, 64: 16, 128: 16}  # of a block: kSkinnyMaxThreads
_MAX_SIDE = 16  # tiles and parts of a block
_CLUSTERS = 16  # clusters of 8 blocks that fit an H100 at one block a multiprocessor
_FEW_ROWS = 8
_MAX_STAGED_ROWS = 512  # of inputs in shared memory, for all parts of a block
_WARPS = 8  # that a block should have, to load and normalize its inputs


class Launch(NamedTuple):
    """A launch's shape.

    Attributes:
        tiles: of 16 features a block.
        parts: warps that divide the channels of a tile in a block.
        split: blocks of a cluster, which divide the channels: 1, 2, 4 or 8.
    """

    tiles: int
    parts: int
    split: int


def row_class(rows: int) -> int:
    """Rows that the kernel for `rows` rows is compiled for."""
    return next(size for size in _CLASSES if rows <= size)


def choose(
    rows: int, channels: int, features: int, device: torch.device, *, group: int = 1
) -> Launch:
    """The shape of the launch for x [rows, channels] and a weight [features, channels].

    Args:
        rows: rows of x.
        channels: columns of the weight.
        features: rows of the weight.
        device: where the launch is.
        group: tiles that a block must have together.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    measured = _measured(name).get((row_class(rows), channels, features))
    if measured is not None and measured.tiles % group == 0:
        return measured
    return _rule(rows, channels, features) if group == 1 else _grouped(rows, channels, group)


def candidates(rows: int, channels: int, features: int) -> list[Launch]:
    """Shapes of launches worth timing; the rule's choice is the first."""
    steps, tiles = channels // 16, features // 16
    found = [_rule(rows, channels, features)]
    for split in (1, 2, 4, 8):
        for clusters in (_CLUSTERS, 2 * _CLUSTERS, 8 * _CLUSTERS):
            width = max(1, min(-(-tiles * split // (8 * clusters)), _MAX_SIDE))
            for warps in (8, 16):
                parts = min(warps // width, steps // split)
                launch = Launch(width, parts, split)
                fits = parts >= 1 and width * parts <= _MAX_WARPS[row_class(rows)]
                fits = fits and row_class(rows) * parts <= _MAX_STAGED_ROWS
                if fits and launch not in found:
                    found.append(launch)
    return found


def _rule(rows: int, channels: int, features: int) -> Launch:
    steps, tiles = channels // 16, features // 16
    if rows <= _FEW_ROWS:  # the sum within a block spares a barrier of the cluster
        return Launch(1, min(_WARPS, steps), 1)
    split = max(s for s in (1, 2, 4, 8) if s <= steps)
    width = min(-(-tiles // _CLUSTERS), _MAX_SIDE)
    parts = max(1, min(_WARPS // width, steps // split))
    return Launch(width, parts, split)


def _grouped(rows: int, channels: int, group: int) -> Launch:
    """One group of tiles a block, divided among as many warps as there is work for."""
    steps = channels // 16
    split = max(s for s in (1, 2, 4, 8) if s <= steps)
    parts = max(1, min(_MAX_WARPS[row_class(rows)] // group, steps // split))
    return Launch(group, parts, split)


@functools.cache
def _measured(name: str) -> dict[tuple[int, int, int], Launch]:
    """What was measured on cards of a name, by class of rows, channels and features.

    Raises:
        ValueError: the file is not as it must be.
    """
    try:
        table = json.loads(MEASURED.read_text(encoding="utf-8"))
        return {
            (row["rows"], row["channels"], row["features"]): Launch(*map(int, row["launch"]))
            for row in table.get(name, [])
        }
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{MEASURED.name}: {name} must be a list of objects with rows, channels, features and "
            f"launch [tiles, parts, split], got {type(error).__name__}: {error}"
        ) from error
