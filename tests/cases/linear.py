"""linear: the products of the head and of a step of the transformer, for few rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bitdance_kernels import linear
from bitdance_kernels.testing import Call, Case, Timing


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
    wide = make(60, 40)
    yield Call("no bias", (make(3, 4, 8), make(60, 8)))
    yield Call("one row", (make(7), make(300, 7), make(300)))
    yield Call("no row", (make(0, 8), make(3, 8), make(3)))
    yield Call("no feature", (make(2, 8), make(0, 8), make(0)))
    yield Call("strided", (make(9, 12)[:, 2:10], wide[:, 3:11], make(120)[::2]))


def _timing(rows: int, channels: int, features: int) -> Timing:
    name = f"[{rows}, {channels}] to {features} float32"

    def make(device: torch.device) -> Call:
        weight = torch.randn(features, channels, device=device) / channels**0.5
        x = torch.randn(rows, channels, device=device)
        return Call(name, (x, weight, weight[:, 0].contiguous()))

    moved = 4 * (rows * channels + features * (channels + 1) + rows * features)
    return Timing(name, make, moved, flops=2 * rows * channels * features, devices=("cpu",))


CASES = (
    Case(
        op=linear,
        rule="staged",
        samples=samples,
        timings=(
            _timing(8, 192, 576),
            _timing(64, 192, 576),
            _timing(32, 768, 2304),
            _timing(256, 768, 2304),
            _timing(512, 768, 2304),
            _timing(32, 5120, 5120),
        ),
        baselines={"F.linear": F.linear},
    ),
)
