"""Samples of patch_attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import patch_attention
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 4, 48, 2), (3, 16, 96, 1), (1, 1, 24, 1), (2, 9, 72, 3), (0, 4, 24, 2)]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for rows, patch, width, heads in shapes:
            qkv = torch.randn(rows, patch, width, generator=generator).to(device, dtype)
            yield Call(f"[{rows}, {patch}, {width}], {heads} heads, {dtype}", (qkv, heads))
    qkv = torch.randn(2, 64, 96, generator=generator).to(device)
    yield Call("64 tokens", (qkv, 2))
    yield Call("sharp scores", (30 * qkv[:, :16], 2))


CASES = (Case(op=patch_attention, rule="staged", samples=samples),)
