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
    for rows, channels, width in ((8, 64, 48), (5, 70, 96), (13, 193, 16), (3, 700, 32)):
        name = f"panels, {rows} rows, {channels} to {width}"
        x, weight, bias, residual, gate = call("", channels, width, torch.float32, rows).args
        panels = pack_weight(weight, "panels")
        yield Call(name, (x, panels, bias, residual, gate))
        yield Call(f"{name}, no bias, no gate", (x, panels, None, residual))
    # The largest error of many moments, which says more than that of a few.
    x, weight, bias, residual, gate = call("", 193, 96, torch.float32, 33).args
    args = (x, pack_weight(weight, "panels"), bias, residual, gate)
    yield Call("panels, moments", args, {"return_moments": True})
    x, weight, bias, residual, gate = call("", 8, 16, torch.float32, 3, 4).args
    panels, columns = pack_weight(weight, "panels"), residual.transpose(0, 1).contiguous()
    strided = columns.transpose(0, 1)
    yield Call("panels, strided", (x, panels, bias, strided, gate))
    yield Call("panels, a gate for all tokens", (x, panels, bias, residual, gate[:, :1]))
    yield Call("panels, a gate for all rows", (x, panels, bias, residual, gate[0, 0]))
    x, weight, _, residual, gate = call("", 8, 6, torch.float16, 3, 4).args
    yield Call("no bias, float32 stream", (x, weight, None, residual.float(), gate.float()))
    yield call("one row", 7, 30, torch.float32)
    yield call("no row", 8, 3, torch.float32, 0)


CASES = (Case(op=linear_gated_residual, rule="staged", samples=samples),)
