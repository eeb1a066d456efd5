"""Samples of bit_counts."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import bit_counts
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for shape in [(5, 8), (1, 1), (0, 4), (3, 7, 5), (1,), (300, 17)]:
        packed = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        yield Call(f"{list(shape)}", (packed.to(device),))
    yield Call("all ones", (torch.full((70, 2), 255, dtype=torch.uint8, device=device),))


CASES = (Case(op=bit_counts, rule="exact", samples=samples),)
