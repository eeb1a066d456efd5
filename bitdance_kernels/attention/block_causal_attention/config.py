"""Tile sizes of the Triton kernels, by head dimension, bytes of a value, keys and card.

What ``python -m benchmarks gpu --only attention`` has found faster on a card of this name is in
``measured.json``. A rule chooses for all else: tiles that compile without spills for 8.0, 9.0 and
10.0, and of those for 9.0 the ones that were fastest on an H100, before the kernels had
descriptors. A block has 163 KB of shared memory on 8.0 and 227 KB on 9.0 and 10.x, but 99 KB on
8.6, 8.9 and 12.0, which also multiply matrices as 8.0 does.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

# The widest head that the kernels keep in registers.
MAX_WIDTH = 128
# Keys from which a sequence is long: there products count, in shorter ones traffic and latency.
LONG = 2048
MEASURED = Path(__file__).with_name("measured.json")


class Shape(NamedTuple):
    """What tiles are chosen by.

    Attributes:
        width: head dimension as a power of two.
        size: bytes of a value.
        keys: Tk.
        capability: compute capability of the card, such as 90; 0 without one.
        describable: whether the card and the layouts allow loads by descriptors.
        card: its name.
    """

    width: int
    size: int
    keys: int
    capability: int
    describable: bool
    card: str = ""


class Tile(NamedTuple):
    """Queries and keys in a tile, and how a program runs over the tiles.

    Attributes:
        queries: rows of a tile of queries.
        keys: rows of a tile of keys.
        warps: of a program.
        stages: tiles whose loads are under way at once.
        described: load by descriptors, and tiles that need no mask in a loop of their own.
        precision: ``input_precision`` of products of float32. With "bf16x6" a value is three
            bfloat16 values, which hold its 24 bits, and six products on matrix units make up one.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    described: bool = False
    precision: str = "ieee"


def forward(shape: Shape) -> Tile:
    """Tile of the forward kernel."""
    return _measured_tile("forward", shape) or _forward(shape)


def query_tile(shape: Shape) -> Tile:
    """Tile of the kernel for the gradient of queries."""
    return _measured_tile("query_tile", shape) or _query_tile(shape)


def key_tile(shape: Shape) -> Tile:
    """Tile of the kernel for the gradients of keys and values."""
    return _measured_tile("key_tile", shape) or _key_tile(shape)


def candidates(kernel: str, shape: Shape) -> list[Tile]:
    """Tiles worth timing for "forward", "query_tile" or "key_tile"; the rule's is the first."""
    rule = {"forward": _forward, "query_tile": _query_tile, "key_tile": _key_tile}[kernel]
    found = [rule(shape)]
    if shape.size == 2 and 90 <= shape.capability < 100:
        others = [Tile(*numbers) for numbers in _CANDIDATES[kernel, shape.width > 64]]
        found += [
            tile
            for tile in others
            if tile not in found and (shape.describable or not tile.described)
        ]
    return found


# By kernel, and whether heads are wider than 64; all compile without spills for 9.0.
_CANDIDATES: dict[tuple[str, bool], list[tuple[int, int, int, int, bool]]] = {
    ("forward", False): [
        (64, 64, 4, 2, True), (128, 64, 8, 3, True), (128, 128, 8, 2, True), (64, 128, 4, 2, True),
        (64, 64, 4, 3, False),
    ],
    ("forward", True): [
        (64, 64, 4, 2, True), (128, 64, 8, 3, True), (128, 128, 8, 2, True), (64, 128, 4, 2, True),
    ],
    ("query_tile", False): [
        (64, 64, 4, 3, True), (64, 32, 4, 3, True), (128, 64, 8, 2, True), (128, 64, 8, 3, False),
    ],
    ("query_tile", True): [
        (64, 64, 4, 3, True), (64, 32, 4, 3, True), (128, 64, 8, 2, True), (128, 64, 8, 2, False),
    ],
    ("key_tile", False): [
        (64, 128, 8, 1, True), (64, 128, 8, 2, False),
    ],
    ("key_tile", True): [
        (16, 64, 8, 2, True), (32, 64, 8, 2, False),
    ],
}  # fmt: skip


def _forward(shape: Shape) -> Tile:
    width, capability = shape.width, shape.capability
    if shape.size == 4:
        spills = width <= 16 and 100 <= capability < 110
        if width <= 64 and capability >= 80 and not spills:
            return Tile(64, 32, 4, 2, precision="bf16x6")
        return Tile(64, 32, 8, 2) if width <= 64 else Tile(32, 32, 4, 1)
    if 100 <= capability < 110:
        if width <= 64 and shape.describable:
            return Tile(64, 64, 4, 3, True)
        return Tile(64, 64, 8, 2) if width <= 64 else Tile(64, 64, 4, 2)
    if capability == 90:
        return Tile(64, 64, 4, 3, shape.describable)
    return Tile(128, 64, 8, 3) if width <= 64 else Tile(64, 64, 8, 2)


def _query_tile(shape: Shape) -> Tile:
    width = shape.width
    if shape.size == 4:
        if width <= 64 and shape.capability == 90:
            return Tile(64, 16, 4, 1, precision="bf16x6")
        if width <= 16 and shape.capability < 100:
            return Tile(32, 16, 8, 1)
        return Tile(16, 32, 4, 1) if width <= 64 else Tile(32, 32, 16, 1)
    if shape.capability == 90 and shape.describable:
        return Tile(64, 64, 4, 2, True)
    if _large(shape.capability):
        if width <= 64 and shape.capability >= 100:
            return Tile(64, 64, 8, 2)
        return Tile(128, 64, 8, 3) if width <= 64 else Tile(128, 64, 8, 2)
    return Tile(64, 64, 4, 2) if width <= 64 else Tile(64, 64, 8, 2)


def _key_tile(shape: Shape) -> Tile:
    width = shape.width
    if shape.size == 4:
        if width <= 64 and shape.capability == 90:
            return Tile(16, 64, 4, 1, precision="bf16x6")
        return Tile(16, 32, 4, 1) if width <= 64 and shape.capability < 100 else Tile(16, 32, 8, 1)
    if shape.capability == 90 and shape.describable and width <= 64:
        return Tile(32, 128, 8, 2, True)
    if _large(shape.capability):
        if width <= 64:
            return Tile(64, 128, 8, 2)
        return Tile(32, 128, 8, 2) if shape.capability < 100 else Tile(16, 64, 8, 2)
    return Tile(16, 128, 8, 2) if width <= 64 else Tile(32, 64, 8, 2)


def _large(capability: int) -> bool:
    return 90 <= capability < 110


def _measured_tile(kernel: str, shape: Shape) -> Tile | None:
    tile = measured(shape.card).get((kernel, shape.width, shape.size, shape.keys >= LONG))
    return tile if tile is not None and (shape.describable or not tile.described) else None


@functools.cache
def measured(card: str) -> dict[tuple[str, int, int, bool], Tile]:
    """What was measured on cards of a name: by kernel, width, bytes of a value, and if long.

    Raises:
        ValueError: the file is not as it must be.
    """
    try:
        table = json.loads(MEASURED.read_text(encoding="utf-8"))
        return {
            (row["kernel"], row["width"], row["size"], row["long"]): Tile(*row["tile"])
            for row in table.get(card, [])
        }
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{MEASURED.name}: {card} must be a list of objects with kernel, width, size, long and "
            f"tile [queries, keys, warps, stages, described, precision], got "
            f"{type(error).__name__}: {error}"
        ) from error
