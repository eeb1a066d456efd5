"""Samples of unpack_signs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import unpack_signs
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in [(5, 8), (1, 1), (0, 4), (3, 7, 5), (2, 1, 4, 32), (1,), (300, 17)]:
            packed = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
            yield Call(f"{list(shape)} {dtype}", (packed.to(device), dtype))


CASES = (Case(op=unpack_signs, rule="exact", samples=samples),)
