"""group_norm_silu: the shapes of the d16c32 decoder at 256 x 256 pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bitdance_kernels import group_norm_silu
from bitdance_kernels.testing import Call, Case, Timing


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
    yield Call("chunks of many positions", (5 + many, 4, make((8,)), make((8,))))


def _timing(batch: int, channels: int, size: int, dtype: torch.dtype, *devices: str) -> Timing:
    name = f"[{batch}, {channels}, {size}, {size}] {str(dtype).removeprefix('torch.')}"

    def make(device: torch.device) -> Call:
        x = torch.randn(batch, channels, size, size, device=device).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        affine = (torch.ones(channels, device=device), torch.zeros(channels, device=device))
        return Call(name, (x, 32, *affine))

    # Read twice and written once: the statistics of a whole map come first.
    moved = 3 * batch * channels * size * size * dtype.itemsize
    return Timing(name, make, bytes=moved, devices=devices or ("cpu", "cuda"))


def torch_expression(
    x: torch.Tensor, num_groups: int, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    wide = F.group_norm(x.float(), num_groups, weight, bias, 1e-6)
    return (wide * torch.sigmoid(wide)).to(x.dtype)


CASES = (
    Case(
        op=group_norm_silu,
        rule="rounded",
        samples=samples,
        timings=(
            _timing(1, 256, 128, torch.float32),
            _timing(1, 512, 32, torch.float32),
            _timing(16, 256, 256, torch.bfloat16, "cuda"),
            _timing(16, 512, 64, torch.bfloat16, "cuda"),
        ),
        baselines={"torch": torch_expression},
    ),
)
