"""Samples of adaln_linear and adaln_linear_swiglu."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from bitdance_kernels import adaln_linear, adaln_linear_swiglu, pack_weight, quantize_rows
from bitdance_kernels._shared import moments
from bitdance_kernels.testing import Call, Case

_LAYOUTS = {1: "rows", 2: "swiglu"}


def _samples(halves: int) -> Callable[[torch.device], Iterator[Call]]:
    def samples(device: torch.device) -> Iterator[Call]:
        generator = torch.Generator().manual_seed(0)

        def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        def call(
            name: str, channels: int, features: int, dtype: torch.dtype, *rows: int, affine: bool
        ) -> Call:
            modulation = make(*rows, 3 * channels, dtype=dtype)
            scale, shift = modulation[..., :channels], modulation[..., channels : 2 * channels]
            weight = (make(halves * features, channels) / channels**0.5).to(dtype)
            bias = make(halves * features, dtype=dtype)
            norm = (make(channels), make(channels)) if affine else ()
            x = make(*rows, channels, dtype=dtype)
            return Call(name, (x, scale, shift, weight, bias, *norm))

        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for rows, channels, features in ((16, 64, 32), (5, 24, 10), (49, 41, 17)):
                name = f"{rows} rows, {channels} to {features}, {dtype}"
                yield call(name, channels, features, dtype, rows, affine=rows != 49)
            args = list(call("", 32, 16, dtype, 3, 3, affine=True).args)
            weight = args[3]
            layout, (values, scales) = _LAYOUTS[halves], quantize_rows(weight)
            args[3] = pack_weight(values, layout, scales=scales)
            yield Call(f"packed, float8, {dtype}", tuple(args))
            args[3] = pack_weight(weight, layout)
            yield Call(f"packed, {dtype}", tuple(args))
            given = {"moments": moments.of(args[0])}
            yield Call(f"packed, with moments, {dtype}", tuple(args), given)
            args = list(call("", 193, 48, dtype, 33, affine=True).args)
            args[3] = pack_weight(args[3], "panels")
            yield Call(f"panels, {dtype}", tuple(args))
        one = call("", 7, 3, torch.float32, 2, 3, affine=True).args
        yield Call("no bias, weight alone", (*one[:4], None, one[5]))
        yield call("one row", 7, 30, torch.float32, affine=False)
        yield call("no row", 8, 3, torch.float32, 0, affine=True)

    return samples


CASES = (
    Case(op=adaln_linear, rule="staged", samples=_samples(1)),
    Case(op=adaln_linear_swiglu, rule="staged", samples=_samples(2)),
)
