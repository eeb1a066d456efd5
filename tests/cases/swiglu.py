"""Samples of swiglu."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import swiglu
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in [(300, 48), (3, 5, 14), (2,), (0, 8), (1, 256)]:
            h = 3 * torch.randn(shape, generator=generator)
            yield Call(f"{list(shape)} {dtype}", (h.to(device, dtype),))
    extremes = torch.tensor([[-100.0, -20.0, 0.0, 20.0, 100.0] * 2], device=device)
    yield Call("saturated", (extremes,))


CASES = (Case(op=swiglu, rule="rounded", samples=samples),)
