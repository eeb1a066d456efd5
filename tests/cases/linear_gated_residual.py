"""Samples of linear_gated_residual."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import linear_gated_residual, pack_weight, quantize_rows
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def call(name: str, channels: int, width: int, dtype: torch.dtype, *rows: int) -> Call:
        gate = make(*rows, 3 * width, dtype=dtype)[..., width : 2 * width]
        weight = (make(width, channels) / channels**0.5).to(dtype)
        bias, residual = make(width, dtype=dtype), make(*rows, width, dtype=dtype)
        return Call(name, (make(*rows, channels, dtype=dtype), weight, bias, residual, gate))

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for rows, channels, width in ((16, 64, 32), (5, 24, 10), (49, 41, 17), (131, 72, 40)):
            yield call(f"{rows} rows, {channels} to {width}, {dtype}", channels, width, dtype, rows)
        x, weight, bias, residual, gate = call("", 48, 32, dtype, 9).args
        packed, (values, scales) = pack_weight(weight), quantize_rows(weight)
        float8 = pack_weight(values, scales=scales)
        yield Call(f"packed, float8, {dtype}", (x, float8, bias, residual, gate))
        yield Call(f"packed, {dtype}", (x, packed, bias, residual, gate))
        yield Call(f"packed, no gate, {dtype}", (x, packed, bias, residual))
        returned = {"return_moments": True}
        yield Call(f"with moments, {dtype}", (x, packed, bias, residual, gate), returned)
        yield Call(f"with moments, no gate, {dtype}", (x, weight, bias, residual, None), returned)
    x, weight, _, residual, gate = call("", 8, 6, torch.float16, 3, 4).args
    yield Call("no bias, float32 stream", (x, weight, None, residual.float(), gate.float()))
    yield call("one row", 7, 30, torch.float32)
    yield call("no row", 8, 3, torch.float32, 0)


CASES = (Case(op=linear_gated_residual, rule="staged", samples=samples),)
