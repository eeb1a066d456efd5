"""``python -m benchmarks gpu --only attention``: attention, forward, backward and decoding."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu import ops
from benchmarks.gpu.decide import common, tables
from benchmarks.gpu.worker import Context, Step
from benchmarks.shapes.attention import text_to_image
from bitdance_kernels import block_causal_ranges
from bitdance_kernels.attention.block_causal_attention import config
from bitdance_kernels.attention.ranges import Ranges

OPS = ("block_causal_attention", "block_decode_attention")
TILE = "attention tile"
"""What the figures of a tile are of."""
_CALLS = 5
_ROUNDING = 0.01  # of the norm, for bfloat16

Sizes = tuple[int, int, int, int]


def steps(context: Context) -> Sequence[Step]:
    """Checks, then tiles, whose winners the library reads, then every shape."""
    right: list[Step] = []
    timed: list[Step] = []
    for step in ops.steps(context, "attention", OPS):
        (right if step[0].startswith("right") else timed).append(step)
    op = OPS[0]
    tiles = [
        ops.if_right(context, "attention", op, f"tiles, {name}, {kernel}", function)
        for name, kernel, function in _tile_steps(context)
    ]
    save = ops.if_right(context, "attention", op, "table of tiles", lambda: _save(context))
    return [*right, *tiles, save, *timed]


def _tile_steps(context: Context) -> Iterable[tuple[str, str, Callable[[], None]]]:
    imagenet = functools.partial(block_causal_ranges, 63, 16, 16)
    shapes: dict[str, tuple[Sizes, Callable[..., Ranges]]] = {
        "ImageNet B, 64 images": ((64, 12, 12, 64), imagenet),
        "packed 14B, 16k tokens": ((1, 40, 8, 128), text_to_image),
    }
    if context.dry_run:
        shapes = {"small": ((1, 2, 1, 16), functools.partial(block_causal_ranges, 3, 2, 4))}
    for name, (sizes, make_ranges) in shapes.items():
        for kernel in ("forward", "query_tile", "key_tile"):
            yield name, kernel, functools.partial(_tiles, context, kernel, sizes, make_ranges)


def _tiles(context: Context, kernel: str, sizes: Sizes, make_ranges: Callable[..., Ranges]) -> None:
    """Microseconds of the pass that has `kernel`, by its tile; the others keep theirs."""
    from bitdance_kernels.attention.block_causal_attention import triton as kernels

    B, H, Hkv, D = sizes
    dtype = torch.float32 if context.dry_run else torch.bfloat16
    ranges = make_ranges(device=context.device)
    T = len(ranges.start)
    q, grad = torch.randn(2, B, T, H, D, device=context.device).to(dtype)
    k, v = torch.randn(2, B, T, Hkv, D, device=context.device).to(dtype)
    arguments = q, k, v, ranges.start, ranges.end, D**-0.5
    out, lse = kernels.run(*arguments)
    shapes: list[config.Shape] = []

    def asked(shape: config.Shape) -> config.Tile:
        shapes.append(shape)
        return config.candidates(kernel, shape)[0]

    def call(choose: Callable[[config.Shape], config.Tile]) -> Any:
        with mock.patch.object(config, kernel, choose):
            if kernel == "forward":
                return kernels.run(*arguments)
            return kernels.run_backward(grad, q, k, v, out, lse, *arguments[3:])

    usual = call(asked)
    shape, ways = shapes[0], {}
    for tile in config.candidates(kernel, shape):
        way = functools.partial(call, functools.partial(_always, tile))
        if _near(way(), usual):
            ways[str(list(tile))] = way
        else:
            context.add("not timed", "its results are others", f"{kernel}: {tile}")
    common.time_ways(
        context, TILE, ways, calls=_CALLS, kernel=kernel, width=shape.width, size=shape.size,
        keys=shape.keys,
    )  # fmt: skip


def _near(results: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    """Whether results are the same but for rounding; the usual tile's are held to the rule."""
    pairs = zip(results, others, strict=True)
    return all(bool((a - b).float().norm() <= _ROUNDING * b.float().norm()) for a, b in pairs)


def _always(tile: config.Tile, shape: config.Shape) -> config.Tile:
    return tile


def of_tiles(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entry of a card in the table: tiles that are faster than the rule's, a kernel's first."""
    groups: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(dict)
    for record in records:
        if record["what"] == TILE:
            long = record["keys"] >= config.LONG
            key = record["kernel"], record["width"], record["size"], long
            groups[key][record["way"]] = record["all_us"]
    entry = []
    for key, us in groups.items():
        usual = next(iter(us))
        best = tables.winner(us, usual)
        if best != usual:
            row = dict(zip(("kernel", "width", "size", "long"), key, strict=True))
            entry.append({**row, "tile": _tile_of(best)})
    return entry


def _tile_of(way: str) -> list[Any]:
    """The tile of a record, whose way is its list."""
    numbers = way.strip("[]").split(", ")
    return [*map(int, numbers[:4]), numbers[4] == "True", numbers[5].strip("'")]


def _save(context: Context) -> None:
    """Write the table to the folder of the run and, unless it is a dry one, to the package."""
    card = "dry run" if context.dry_run else torch.cuda.get_device_name(context.device)
    text = tables.with_entry(
        config.MEASURED.read_text(encoding="utf-8"), card, of_tiles(context.result["ways"])
    )
    copy = context.journal.parents[1] / "tables" / "attention_tiles.json"
    copy.parent.mkdir(parents=True, exist_ok=True)
    for path in (copy, *[config.MEASURED] * (not context.dry_run)):
        path.write_text(text, encoding="utf-8")
    config.measured.cache_clear()
