"""flip_bits and flip_signs: perturbing the latents of a training batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bitdance_kernels import flip_bits, flip_signs
from bitdance_kernels.testing import Call, Case, Timing

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


def _make_packed(device: torch.device) -> Call:
    packed = torch.randint(256, (2**16, 32), dtype=torch.uint8, device=device)
    return Call("16.8 M bits", (packed, 0.1), {"seed": 1})


def _make_signs(device: torch.device) -> Call:
    x = torch.randn(2**14, 256, device=device).sign()
    return Call("4.2 M float32", (x, 0.1), {"seed": 1})


def torch_packed(packed: torch.Tensor, rate: float, **_: Any) -> torch.Tensor:
    shape = (*packed.shape, 8)
    flips = torch.rand(shape, device=packed.device) < rate * torch.rand(shape, device=packed.device)
    return packed ^ (flips * 2 ** torch.arange(8, device=packed.device)).sum(-1).to(torch.uint8)


def torch_signs(x: torch.Tensor, rate: float, **_: Any) -> torch.Tensor:
    return torch.where(torch.rand_like(x) < rate * torch.rand_like(x), -x, x)


CASES = (
    Case(
        op=flip_bits,
        rule="exact",
        samples=samples,
        timings=(Timing("16.8 M bits", _make_packed, bytes=2 * 2**21),),
        baselines={"torch": torch_packed},
    ),
    Case(
        op=flip_signs,
        rule="exact",
        samples=signs_samples,
        timings=(Timing("4.2 M float32", _make_signs, bytes=8 * 2**22),),
        baselines={"torch": torch_signs},
    ),
)
