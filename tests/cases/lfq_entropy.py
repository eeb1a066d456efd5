"""Samples of lfq_entropy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bitdance_kernels import lfq_entropy
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape, bits in [((40, 16), 8), ((3, 7, 12), 4), ((5, 6), 1), ((2, 10), 5)]:
            x = 0.02 * torch.randn(shape, generator=generator)
            yield Call(f"{list(shape)} by {bits}, {dtype}", (x.to(device, dtype), bits))
    x = 0.02 * torch.randn(9, 12, generator=generator).to(device)
    yield Call("per group, other settings", (x, 3), {"per_group": True, "temperature": 0.05})
    yield Call("one token", (x[0], 12), {"eps": 1e-3})
    yield Call("no token", (x[:0], 4))


def all_codes(
    x: torch.Tensor, group_bits: int, temperature: float = 0.01, eps: float = 1e-5, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.arange(2**group_bits, device=x.device)
    shifts = torch.arange(group_bits, device=x.device)
    codes = ((index[:, None] >> shifts) & 1).to(x.dtype) * 2 - 1
    logits = 2 * x.unflatten(-1, (-1, group_bits)) @ codes.T / temperature
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    mean = p.flatten(0, -2).mean(0)
    return -(p * log_p).sum(-1).mean(), -(mean * (mean + eps).log()).sum()


CASES = (Case(op=lfq_entropy, rule="staged", samples=samples),)
