"""Samples of hamming_distance and nearest_codes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import hamming_distance, nearest_codes
from bitdance_kernels.testing import Call, Case


def _codes(rows: int, width: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (rows, width), generator=generator, dtype=torch.uint8).to(device)


def samples(device: torch.device) -> Iterator[Call]:
    for n, m, width in [(5, 7, 4), (1, 1, 1), (0, 3, 2), (3, 0, 2), (33, 65, 17), (70, 3, 32)]:
        yield Call(
            f"{n} x {m}, {8 * width} bits", (_codes(n, width, device), _codes(m, width, device, 1))
        )


def nearest_samples(device: torch.device) -> Iterator[Call]:
    for n, m, width, k in [
        (5, 7, 4, 3),
        (1, 1, 1, 1),
        (0, 3, 2, 2),
        (33, 65, 1, 65),
        (3, 70, 17, 9),
    ]:
        codes = (_codes(n, width, device), _codes(m, width, device, 1))
        yield Call(f"{n} x {m}, {8 * width} bits, {k} nearest", (*codes, k))


CASES = (
    Case(op=hamming_distance, rule="exact", samples=samples),
    Case(op=nearest_codes, rule="exact", samples=nearest_samples),
)
