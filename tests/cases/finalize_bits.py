"""Samples of finalize_bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import finalize_bits
from bitdance_kernels.testing import Call, Case, specials


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    rows: tuple[tuple[tuple[int, ...], float | None], ...] = (
        ((5, 32), None),
        ((10, 4, 32), 4.0),
        ((2, 8), 1.0),
        ((0, 16, 32), 3.9),
        ((3, 7, 40), None),
        ((4, 1, 3, 8), 6.1),
        ((600, 136), 7.5),
    )
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape, cfg in rows:
            x0 = torch.randn(shape, generator=generator).to(dtype)
            every_third = x0.view(-1)[::3]
            values = torch.tensor(specials(dtype), dtype=dtype)
            every_third.copy_(values.repeat(every_third.numel())[: every_third.numel()])
            scale = None if cfg is None else torch.tensor(cfg, device=device)
            yield Call(f"{list(shape)} {dtype} cfg {cfg}", (x0.to(device),), {"cfg": scale})


CASES = (Case(op=finalize_bits, rule="exact", samples=samples),)
