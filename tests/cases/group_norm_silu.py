"""Samples of group_norm_silu."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import group_norm_silu
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        # Channels enough that the largest error of a gradient of theirs is no matter of luck.
        x, affine = make((2, 36, 5, 7), dtype), (make((36,)), make((36,)))
        yield Call(f"affine, {dtype}", (x, 4, *affine))
        adaptive = {"scale": make((2, 36), dtype), "shift": make((2, 36), dtype)}
        yield Call(f"adaptive, no SiLU, {dtype}", (x, 3), {**adaptive, "silu": False})
        last = x.contiguous(memory_format=torch.channels_last)
        yield Call(f"affine and adaptive, channels-last, {dtype}", (last, 36, *affine), adaptive)
    several = make((1, 96, 6, 11)).contiguous(memory_format=torch.channels_last)
    yield Call("several chunks and blocks", (several, 32, make((96,)), make((96,))))
    yield Call("one position", (make((2, 8, 1, 1)), 2))
    yield Call("one channel a group, weight alone", (make((1, 3, 4, 4)), 3, make((3,))))
    yield Call("no image", (make((0, 8, 4, 4)), 2, make((8,)), make((8,))))
    many = make((2, 8, 19, 15)).contiguous(memory_format=torch.channels_last)
    long = make((1, 4, 67, 65), torch.float16)
    yield Call("channels of several pieces", (long, 2, make((4,)), make((4,))))
    yield Call("chunks of many positions", (5 + many, 4, make((8,)), make((8,))))


CASES = (Case(op=group_norm_silu, rule="rounded", samples=samples),)
