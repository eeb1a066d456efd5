"""Samples of conv3x3."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import conv3x3, pack_weight
from bitdance_kernels.testing import Call, Case


def panels(weight: torch.Tensor) -> torch.Tensor:
    """The weight of a convolution in panels."""
    return pack_weight(weight.permute(0, 2, 3, 1).flatten(1), "panels")


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def layer(features: int, channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return make(features, channels, 3, 3, dtype=dtype) / (9 * channels) ** 0.5

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        # Every width of a tile, several blocks of channels and groups of panels, single pixels.
        for B, C, H, W, features in (
            (2, 32, 4, 4, 96), (1, 5, 3, 7, 16), (3, 97, 2, 9, 48), (1, 40, 5, 1, 112),
            (1, 16, 1, 13, 160), (1, 3, 1, 1, 16),
        ):  # fmt: skip
            x, weight = make(B, C, H, W, dtype=dtype), layer(features, C, dtype)
            name = f"[{B}, {C}, {H}, {W}] to {features}, {dtype}"
            yield Call(name, (x, panels(weight), make(features, dtype=dtype)))
        x, weight = make(2, 8, 4, 6, dtype=dtype), layer(32, 8, dtype)
        yield Call(f"a matrix, {dtype}", (x, weight, make(32, dtype=dtype)))
        residual = make(2, 32, 4, 6, dtype=dtype)
        yield Call(f"residual, {dtype}", (x, panels(weight), None, residual))
    x, weight = make(2, 24, 4, 5), layer(144, 24)
    for factor in (2, 3):
        features = 16 * factor**2
        yield Call(
            f"upscale_factor {factor}",
            (x, panels(weight[:features]), make(features)),
            {"upscale_factor": factor},
        )
    yield Call("upscale_factor 2, a matrix", (x, weight, make(144)), {"upscale_factor": 2})
    last = make(2, 4, 6, 8).permute(0, 3, 1, 2)
    yield Call("channels-last, no bias", (last, panels(layer(16, 8))))
    yield Call("a part of a map", (make(1, 20, 9, 9)[:, 2:18, 1:7, 2:6], panels(layer(16, 16))))
    yield Call("no image", (make(0, 8, 3, 3), panels(layer(16, 8))))


CASES = (Case(op=conv3x3, rule="staged", samples=samples),)
