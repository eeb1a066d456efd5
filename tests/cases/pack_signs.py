"""Samples of pack_signs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import pack_signs
from bitdance_kernels.testing import Call, Case, specials


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 64), (1, 8), (0, 32), (3, 7, 40), (2, 1, 4, 256), (8,), (300, 136)]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in shapes:
            x = torch.randn(shape, generator=generator).to(dtype)
            x.view(-1)[::3] = torch.tensor(specials(dtype), dtype=dtype).repeat(x.numel())[
                : x.view(-1)[::3].numel()
            ]
            yield Call(f"{list(shape)} {dtype}", (x.to(device),))
    for dtype in (torch.uint8, torch.bool):
        for shape in [(5, 64), (1, 8), (3, 7, 40), (300, 136)]:
            x = torch.randint(3, shape, generator=generator).clamp(max=1) * 255
            yield Call(f"{list(shape)} {dtype}", (x.to(dtype).to(device),))


CASES = (Case(op=pack_signs, rule="exact", samples=samples),)
