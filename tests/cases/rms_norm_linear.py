"""Samples of rms_norm_linear and rms_norm_linear_swiglu."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from bitdance_kernels import pack_weight, quantize_rows, rms_norm_linear, rms_norm_linear_swiglu
from bitdance_kernels._shared import moments
from bitdance_kernels.testing import Call, Case

_LAYOUTS = {1: "rows", 2: "swiglu"}


def _samples(halves: int) -> Callable[[torch.device], Iterator[Call]]:
    def samples(device: torch.device) -> Iterator[Call]:
        generator = torch.Generator().manual_seed(0)

        def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        def call(name: str, channels: int, features: int, dtype: torch.dtype, *rows: int) -> Call:
            weight = (make(halves * features, channels) / channels**0.5).to(dtype)
            bias, norm = make(halves * features, dtype=dtype), make(channels, dtype=dtype)
            return Call(name, (make(*rows, channels, dtype=dtype), weight, bias, norm))

        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for rows, channels, features in ((16, 64, 32), (5, 24, 10), (49, 41, 17)):
                name = f"{rows} rows, {channels} to {features}, {dtype}"
                yield call(name, channels, features, dtype, rows)
            x, weight, bias, norm = call("", 32, 16, dtype, 3, 3).args
            layout, (values, scales) = _LAYOUTS[halves], quantize_rows(weight)
            float8, packed = pack_weight(values, layout, scales=scales), pack_weight(weight, layout)
            yield Call(f"packed, float8, {dtype}", (x, float8, bias, norm))
            yield Call(f"packed, {dtype}", (x, packed, bias, norm.float()))
            given = {"moments": moments.of(x), "eps": 1e-5}
            yield Call(f"packed, no bias, with moments, {dtype}", (x, packed, None, norm), given)
            x, weight, bias, norm = call("", 193, 48, dtype, 33).args
            yield Call(f"panels, {dtype}", (x, pack_weight(weight, "panels"), bias, norm))
        yield Call("no bias, no weight of the norm", call("", 7, 3, torch.float32, 2, 3).args[:2])
        yield call("one row", 7, 30, torch.float32)
        yield call("no row", 8, 3, torch.float32, 0)

    return samples


CASES = (
    Case(op=rms_norm_linear, rule="staged", samples=_samples(1)),
    Case(op=rms_norm_linear_swiglu, rule="staged", samples=_samples(2)),
)
