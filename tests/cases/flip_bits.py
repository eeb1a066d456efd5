"""Samples of flip_bits and flip_signs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import flip_bits, flip_signs
from bitdance_kernels.testing import Call, Case

_SHAPES = [(5, 8), (1, 1), (0, 4), (3, 7, 5), (1,), (300, 17)]


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for shape in _SHAPES:
        packed = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
        yield Call(f"{list(shape)}", (packed, 0.3), {"seed": 5, "offset": 2**32 - 1})
    uniforms = tuple(torch.rand(6, 16, generator=generator).to(device) for _ in range(2))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        given = {"uniforms": tuple(u.to(dtype) for u in uniforms)}
        packed = torch.randint(256, (6, 2), generator=generator, dtype=torch.uint8).to(device)
        yield Call(f"given uniforms, {dtype}", (packed, 1.0), given)
    seed = torch.tensor(2**62 + 3, device=device)
    yield Call("seed on the device", (packed, 0.5), {"seed": seed, "offset": seed[None] % 7})


def signs_samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in _SHAPES:
            x = torch.randn((*shape[:-1], 8 * shape[-1]), generator=generator).to(device, dtype)
            yield Call(f"{list(x.shape)} {dtype}", (x, 0.3), {"seed": 2**64 - 1})
    uniforms = tuple(torch.rand(6, 16, generator=generator).to(device) for _ in range(2))
    yield Call("given uniforms", (torch.ones(6, 16, device=device), 0.5), {"uniforms": uniforms})


CASES = (
    Case(op=flip_bits, rule="exact", samples=samples),
    Case(op=flip_signs, rule="exact", samples=signs_samples),
)
