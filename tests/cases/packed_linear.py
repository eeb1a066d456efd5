"""Samples of packed_linear."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import packed_linear
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape, features in [((300, 4), 24), ((3, 5, 2), 7), ((1,), 1), ((0, 4), 8)]:
            packed = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
            weight = torch.randn(features, 8 * shape[-1], generator=generator).to(device, dtype)
            bias = torch.randn(features, generator=generator).to(device, dtype)
            yield Call(f"{list(shape)} to {features}, {dtype}", (packed, weight, bias))
    yield Call("no bias", (packed, weight))


CASES = (Case(op=packed_linear, rule="staged", samples=samples),)
