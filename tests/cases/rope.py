"""Samples of rope."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import rope
from bitdance_kernels.testing import Call, Case

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def table(
    T: int,
    D: int,
    device: torch.device,
    dtype: torch.dtype = F32,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Cosine and sine of random angles, [T, D / 2, 2]."""
    angles = torch.rand(T, D // 2, generator=generator) * 6
    return torch.stack((angles.cos(), angles.sin()), dim=-1).to(device, dtype)


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def call(
        name: str,
        shape: tuple[int, ...],
        interleaved: bool,
        dtype: torch.dtype = F32,
        table_dtype: torch.dtype = F32,
    ) -> Call:
        x = torch.randn(shape, generator=generator).to(device, dtype)
        freqs = table(shape[1], shape[3], device, table_dtype, generator)
        return Call(name, (x, freqs), {"interleaved": interleaved})

    for interleaved in (True, False):
        pairs = "interleaved" if interleaved else "halves"
        for dtype in (F32, F16, BF16):
            yield call(f"{pairs}, {dtype}", (2, 7, 3, 16), interleaved, dtype)
        for D in (32, 48, 80, 96, 128):
            yield call(f"{pairs}, D = {D}", (1, 2, 40, D), interleaved, BF16)
        yield call(f"{pairs}, many rows", (2, 50, 4, 64), interleaved, BF16)
        yield call(
            f"{pairs}, table of bfloat16", (1, 5, 2, 6), interleaved, torch.float32, torch.bfloat16
        )
        yield call(f"{pairs}, one pair", (1, 1, 1, 2), interleaved)
        yield call(f"{pairs}, no token", (2, 0, 3, 8), interleaved)


CASES = (Case(op=rope, rule="rounded", samples=samples, constants=(1,)),)
