"""Samples of linear_fp8."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import linear_fp8, quantize_rows
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for quantize_x in (False, True):
            sizes = "x and weight" if quantize_x else "weight"
            for rows, channels, features in ((1, 16, 32), (5, 80, 48), (67, 208, 16)):
                weight = quantize_rows(make(features, channels) / channels**0.5)
                name = f"{rows} rows, {channels} to {features}, {dtype}, {sizes}"
                x, bias = make(rows, channels, dtype=dtype), make(features, dtype=dtype)
                yield Call(name, (x, *weight, bias), {"quantize_x": quantize_x})
    weight = quantize_rows(make(32, 48))
    for quantize_x in (False, True):
        more = {"quantize_x": quantize_x}
        yield Call(f"no bias, {quantize_x}", (make(2, 3, 48), *weight), more)
        yield Call(f"no row, {quantize_x}", (make(0, 48), *weight), more)
        yield Call(f"strided, {quantize_x}", (make(4, 60)[:, 5:53], *weight), more)
        yield Call(f"odd, {quantize_x}", (make(3, 7), *quantize_rows(make(5, 7)), make(5)), more)
    x, weight = make(2, 5008, dtype=torch.float16), quantize_rows(make(16, 5008))
    yield Call("a row of two parts", (x, *weight), {"quantize_x": True})


CASES = (Case(op=linear_fp8, rule="staged", samples=samples),)
