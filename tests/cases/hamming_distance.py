"""hamming_distance and nearest_codes: search among codes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import hamming_distance, nearest_codes, unpack_signs
from bitdance_kernels.testing import Call, Case, Timing


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


def _timing(rows: int, width: int, *k: int) -> Timing:
    name = f"{rows} x {rows}, {8 * width} bits"

    def make(device: torch.device) -> Call:
        return Call(name, (_codes(rows, width, device), _codes(rows, width, device, 1), *k))

    written = rows * 12 * k[0] if k else rows * rows * 4
    return Timing(name, make, bytes=2 * rows * width + written, flops=2 * rows * rows * 8 * width)


def float_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    product = unpack_signs(a) @ unpack_signs(b).T
    return ((a.shape[1] * 8 - product) / 2).to(torch.int32)


def float_product_topk(
    a: torch.Tensor, b: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    distance, index = float_product(a, b).topk(k, dim=1, largest=False)
    return index, distance


CASES = (
    Case(
        op=hamming_distance,
        rule="exact",
        samples=samples,
        timings=(_timing(4096, 32), _timing(1024, 4)),
        baselines={"float product": float_product},
    ),
    Case(
        op=nearest_codes,
        rule="exact",
        samples=nearest_samples,
        timings=(_timing(4096, 32, 10),),
        baselines={"float product, topk": float_product_topk},
    ),
)
