"""Samples of adaln_norm."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import adaln_norm
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        modulation = make(5, 6 * 24, dtype=dtype)
        scale, shift = modulation[:, :24], modulation[:, 24:48]
        affine = (make(24), make(24))
        yield Call(
            f"5 rows, chunks of one tensor, {dtype}", (make(5, 24, dtype=dtype), scale, shift)
        )
        rows = [make(300, 40, dtype=dtype) for _ in range(3)]
        yield Call(f"300 rows, {dtype}", tuple(rows))
        yield Call(f"affine, {dtype}", (make(5, 24, dtype=dtype), scale, shift, *affine))
    mixed = (make(3, 4, 7, dtype=torch.bfloat16), make(3, 4, 7), make(3, 4, 7))
    yield Call("bfloat16 with float32 modulation, odd width", mixed)
    yield Call("weight alone", (*(make(2, 8) for _ in range(3)), make(8)))
    yield Call("one row", tuple(make(16) for _ in range(3)))
    yield Call("no row", tuple(make(0, 8) for _ in range(3)))
    for width, dtype in ((64, torch.float32), (192, torch.float16), (768, torch.bfloat16),
                         (1024, torch.float32), (1280, torch.float16), (5120, torch.bfloat16),
                         (8192, torch.float32)):  # fmt: skip
        thirds = make(3, 3 * width, dtype=dtype).chunk(3, dim=-1)[:2]
        wide = (make(3, width, dtype=dtype), *thirds, make(width), make(width))
        yield Call(f"3 rows of {width}, {dtype}", wide)


CASES = (Case(op=adaln_norm, rule="rounded", samples=samples),)
