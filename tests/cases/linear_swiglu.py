"""Samples of linear_swiglu."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import linear_swiglu, pack_weight, quantize_rows
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def layer(hidden: int, channels: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        weight = (make(2 * hidden, channels) / channels**0.5).to(dtype)
        return weight, make(2 * hidden, dtype=dtype)

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for rows, channels, hidden in ((16, 64, 32), (5, 24, 10), (49, 41, 17), (131, 72, 40)):
            x = make(rows, channels, dtype=dtype)
            name = f"{rows} rows, {channels} to {hidden}, {dtype}"
            yield Call(name, (x, *layer(hidden, channels, dtype)))
        weight, bias = layer(24, 32, dtype)
        packed, (values, scales) = pack_weight(weight, "swiglu"), quantize_rows(weight)
        yield Call(f"packed, {dtype}", (make(6, 32, dtype=dtype), packed, bias))
        float8 = pack_weight(values, "swiglu", scales=scales)
        yield Call(f"packed, float8, {dtype}", (make(6, 32, dtype=dtype), float8, bias))
    # Panels: every rest of rows and of sums.
    for rows, channels, hidden in ((8, 64, 48), (5, 70, 16), (13, 193, 32), (2, 700, 16)):
        weight, bias = layer(hidden, channels, torch.float32)
        name = f"panels, {rows} rows, {channels} to {hidden}"
        yield Call(name, (make(rows, channels), pack_weight(weight, "panels"), bias))
    panels = pack_weight(layer(16, 8, torch.float32)[0], "panels")
    yield Call("panels, no bias, strided", (make(3, 4, 12)[..., 2:10], panels))
    yield Call("panels, no row", (make(0, 8), panels))
    odd = pack_weight(layer(8, 8, torch.float32)[0], "panels")
    yield Call("panels, a half of one", (make(5, 8), odd, make(16)))
    yield Call("no bias", (make(3, 4, 8), layer(6, 8, torch.float32)[0]))
    yield Call("one row", (make(7), *layer(30, 7, torch.float32)))
    yield Call("no row", (make(0, 8), *layer(3, 8, torch.float32)))


CASES = (Case(op=linear_swiglu, rule="staged", samples=samples),)
