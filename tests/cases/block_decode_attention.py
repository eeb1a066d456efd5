"""Samples of block_decode_attention."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from bitdance_kernels import block_decode_attention
from bitdance_kernels.testing import Call, Case

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def _call(
    name: str,
    q: Sequence[int],
    cache: tuple[int, int],
    lengths: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    scale: float | None = None,
) -> Call:
    """Queries of shape `q` against (Tmax, Hkv) = `cache`, NaN where it is not filled."""
    generator = torch.Generator().manual_seed(len(name))
    B, _, _, D = q
    k, v = torch.randn(2, B, *cache, D, generator=generator).to(dtype)
    for b, length in enumerate(lengths):
        k[b, max(length, 0) :] = float("nan")
        v[b, max(length, 0) :] = float("nan")
    args = (
        torch.randn(*q, generator=generator).to(dtype),
        k,
        v,
        torch.tensor(lengths, dtype=torch.int32),
    )
    kwargs = {} if scale is None else {"scale": scale}
    return Call(name, tuple(x.to(device) for x in args), kwargs)


def samples(device: torch.device) -> Iterator[Call]:
    for dtype in (F32, F16, BF16):
        yield _call(f"P = 4, {dtype}", (2, 4, 3, 16), (21, 3), (7, 21), dtype, device)
        yield _call(f"grouped heads, {dtype}", (2, 9, 4, 64), (150, 2), (150,) * 2, dtype, device)
    for D, dtype in itertools.product((32, 48, 64, 80, 96, 128), (F32, F16, BF16)):
        yield _call(f"D = {D}, {dtype}", (2, 1, 4, D), (70, 2), (1, 67), dtype, device)
    for D, dtype in itertools.product((32, 48, 64, 80, 96, 128), (F32, BF16)):
        yield _call(f"split, D = {D}, {dtype}", (1, 1, 2, D), (400, 1), (390,), dtype, device)
    for P, D in itertools.product((4, 9, 64), (64, 128)):
        yield _call(f"P = {P}, D = {D}", (2, P, 5, D), (70, 1), (70, 8), BF16, device)
        yield _call(f"split, P = {P}, D = {D}", (1, P, 5, D), (400, 1), (391,), BF16, device)
    yield _call("lengths of all kinds", (5, 1, 4, 8), (40, 4), (-1, 0, 1, 33, 50), F32, device)
    yield _call("serial, grouped heads", (2, 1, 8, 32), (70, 1), (65, 1), F32, device)
    yield _call("one token", (1, 1, 1, 8), (1, 1), (1,), F32, device)
    yield _call("P = 3, odd D", (3, 3, 2, 5), (9, 2), (0, 4, 9), F32, device)
    yield _call("P = 64", (1, 64, 2, 16), (300, 1), (257,), BF16, device)
    yield _call("scale", (1, 4, 2, 16), (21, 2), (20,), F32, device, 0.5)
    yield _call("nothing cached", (1, 2, 1, 8), (4, 1), (0,), F32, device)
    yield _call("no cache", (1, 2, 1, 8), (0, 1), (0,), F32, device)
    yield _call("no batch", (0, 2, 1, 8), (4, 1), (), F32, device)


CASES = (Case(op=block_decode_attention, rule="staged", samples=samples),)
