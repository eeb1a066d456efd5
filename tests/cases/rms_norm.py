"""Samples of rms_norm."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import rms_norm
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in [(300, 48), (3, 5, 7), (1,), (0, 8), (20, 2500)]:
            x = make(*shape, dtype=dtype)
            weight = make(shape[-1], dtype=dtype)
            yield Call(f"{list(shape)} {dtype}", (x, weight), {"eps": 1e-5})
        yield Call(f"no weight, {dtype}", (make(9, 40, dtype=dtype),))
        yield Call(f"float32 weight, {dtype}", (make(9, 40, dtype=dtype), make(40)))
    yield Call("strided", (make(6, 90)[:, 3:43], make(80)[::2]))
    yield Call("columns", (make(40, 6).t(), make(40)))


CASES = (Case(op=rms_norm, rule="staged", samples=samples),)
