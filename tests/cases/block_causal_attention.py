"""Samples of block_causal_attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import (
    Ranges,
    block_causal_attention,
    block_causal_ranges,
    packed_document_ranges,
)
from bitdance_kernels.testing import Call, Case

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def call(
        name: str,
        B: int,
        heads: tuple[int, int],
        D: int,
        ranges: Ranges,
        *,
        keys: int | None = None,
        dtype: torch.dtype = F32,
        scale: float | None = None,
    ) -> Call:
        H, Hkv = heads
        T = ranges.start.shape[-1]
        Tk = T if keys is None else keys
        q, k, v = (
            torch.randn(shape, generator=generator).to(device, dtype)
            for shape in ((B, T, H, D), (B, Tk, Hkv, D), (B, Tk, Hkv, D))
        )
        return Call(name, (q, k, v, ranges), {} if scale is None else {"scale": scale})

    def ranges(start: list[int] | list[list[int]], end: list[int] | list[list[int]]) -> Ranges:
        start_tensor = torch.tensor(start, dtype=torch.int32, device=device)
        return Ranges(start_tensor, torch.tensor(end, dtype=torch.int32, device=device))

    imagenet = block_causal_ranges(3, 4, 4, device=device)
    for dtype in (F32, F16, BF16):
        yield call(f"P = 4, {dtype}", 2, (3, 3), 16, imagenet, dtype=dtype)
    packed = packed_document_ranges(
        [15, 130], [(5, "causal"), (10, "parallel"), (130, "parallel")], patch_tokens=16
    )
    packed = Ranges(packed.start.to(device), packed.end.to(device))
    for dtype in (F32, BF16):
        yield call(f"packed, grouped heads, {dtype}", 2, (4, 2), 64, packed, dtype=dtype)
    # Every width of a head that has tiles of its own, whole and in part.
    for D in (32, 48, 80, 128):
        for dtype in (F32, BF16):
            yield call(f"D = {D}, {dtype}", 1, (2, 1), D, imagenet, dtype=dtype)
    yield call("one query", 1, (1, 1), 8, ranges([0], [1]))
    yield call("serial, odd D", 2, (2, 1), 5, block_causal_ranges(71, 0, 1, device=device))
    yield call("scale", 1, (2, 2), 16, imagenet, scale=0.5)
    yield call("more keys", 2, (2, 2), 16, ranges([0, 3, 3], [70, 70, 133]), keys=150)
    blind = ranges([[0, 0, 2, 5], [1, 1, 4, 4]], [[0, 2, 2, 9], [1, 1, 1, 6]])
    yield call("per row, some queries see nothing", 2, (2, 1), 16, blind, keys=9)
    nothing = ranges([0, 0], [0, 0])
    yield call("no key", 1, (1, 1), 16, nothing, keys=0)
    yield call("no query", 1, (1, 1), 16, ranges([], []), keys=4)
    yield call("no batch", 0, (1, 1), 16, imagenet)


CASES = (Case(op=block_causal_attention, rule="staged", samples=samples),)
