"""Samples of linear."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import linear, pack_weight, quantize_rows
from bitdance_kernels.testing import Call, Case


def int8_panels(weight: torch.Tensor) -> torch.Tensor:
    """A weight rounded to int8, in panels."""
    values, scales = quantize_rows(weight, torch.int8)
    return pack_weight(values, "panels", scales=scales)


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        # Whole blocks; every rest of rows, features and lanes; several tiles of each.
        for rows, channels, features in (
            (4, 64, 264), (5, 24, 210), (6, 41, 177), (7, 8, 163), (49, 193, 131), (3, 1050, 130),
        ):  # fmt: skip
            weight = (make(features, channels) / channels**0.5).to(dtype)
            name = f"{rows} rows, {channels} to {features}, {dtype}"
            x, bias = make(rows, channels, dtype=dtype), make(features, dtype=dtype)
            yield Call(name, (x, weight, bias))
        weight, bias = make(32, 48, dtype=dtype), make(32, dtype=dtype)
        x, (values, scales) = make(6, 48, dtype=dtype), quantize_rows(weight)
        yield Call(f"packed, {dtype}", (x, pack_weight(weight), bias))
        yield Call(f"packed, float8, {dtype}", (x, pack_weight(values, scales=scales), bias))
        # Panels: every rest of rows, of panels and of sums; several blocks of channels.
        for rows, channels, features in ((8, 64, 48), (5, 70, 96), (13, 193, 208), (3, 1050, 16)):
            weight = (make(features, channels) / channels**0.5).to(dtype)
            x, bias = make(rows, channels, dtype=dtype), make(features, dtype=dtype)
            name = f"panels, {rows} rows, {channels} to {features}, {dtype}"
            yield Call(name, (x, pack_weight(weight, "panels"), bias))
            yield Call(f"int8 {name}", (x, int8_panels(weight), bias))
    wide = make(60, 40)
    panels = pack_weight(make(32, 8), "panels")
    yield Call("panels, no bias", (make(3, 4, 8), panels))
    yield Call("panels, strided", (make(9, 12)[:, 2:10], panels, make(64)[::2]))
    yield Call("panels, no row", (make(0, 8), panels))
    int8 = int8_panels(make(32, 8))
    yield Call("int8 panels, no bias", (make(3, 4, 8), int8))
    yield Call("int8 panels, strided", (make(9, 12)[:, 2:10], int8, make(64)[::2]))
    yield Call("int8 panels, no row", (make(0, 8), int8))
    yield Call("int8 panels, no feature", (make(2, 8), int8_panels(make(0, 8))))
    yield Call("panels, no feature", (make(2, 8), pack_weight(make(0, 8), "panels")))
    yield Call("no bias", (make(3, 4, 8), make(60, 8)))
    yield Call("one row", (make(7), make(300, 7), make(300)))
    yield Call("no row", (make(0, 8), make(3, 8), make(3)))
    yield Call("no feature", (make(2, 8), make(0, 8), make(0)))
    yield Call("strided", (make(9, 12)[:, 2:10], wide[:, 3:11], make(120)[::2]))


CASES = (Case(op=linear, rule="staged", samples=samples),)
