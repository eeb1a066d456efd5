"""Samples of lfq_quantize and lfq_quantize_commitment."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import lfq_quantize, lfq_quantize_commitment
from bitdance_kernels.testing import Call, Case, specials


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in [(5, 64), (1, 8), (0, 32), (3, 7, 40), (8,)]:
            x = torch.randn(shape, generator=generator).to(device, dtype)
            yield Call(f"{list(shape)} {dtype}", (x,))
        x = torch.tensor([*specials(dtype)] * 8, dtype=dtype, device=device)
        yield Call(f"special values, {dtype}", (x,))


def commitment_samples(device: torch.device) -> Iterator[Call]:
    yield from (call for call in samples(device) if not call.name.startswith("special"))


CASES = (
    Case(op=lfq_quantize, rule="exact", samples=samples),
    Case(op=lfq_quantize_commitment, rule="staged", samples=commitment_samples),
)
