"""packed_linear: the input projection of the transformer, 32 bits to a hidden layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bitdance_kernels import packed_linear, unpack_signs
from bitdance_kernels.testing import Call, Case, Timing


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape, features in [((300, 4), 24), ((3, 5, 2), 7), ((1,), 1), ((0, 4), 8)]:
            packed = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
            weight = torch.randn(features, 8 * shape[-1], generator=generator).to(device, dtype)
            bias = torch.randn(features, generator=generator).to(device, dtype)
            yield Call(f"{list(shape)} to {features}, {dtype}", (packed, weight, bias))
    yield Call("no bias", (packed, weight))


def _timing(rows: int, bits: int, features: int) -> Timing:
    name = f"[{rows}, {bits}] to {features}"

    def make(device: torch.device) -> Call:
        packed = torch.randint(256, (rows, bits // 8), dtype=torch.uint8, device=device)
        weight = torch.randn(features, bits, device=device)
        return Call(name, (packed, weight, torch.randn(features, device=device)))

    moved = rows * bits // 8 + 4 * features * (bits + 1) + 4 * rows * features
    return Timing(name, make, bytes=moved, flops=2 * rows * bits * features)


def unpack_then_linear(
    packed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return F.linear(unpack_signs(packed, weight.dtype), weight, bias)


CASES = (
    Case(
        op=packed_linear,
        rule="staged",
        samples=samples,
        timings=(_timing(2048, 32, 2304), _timing(16384, 32, 2304), _timing(16384, 256, 3840)),
        baselines={"unpack, linear": unpack_then_linear},
    ),
)
