"""rope: training sequences of the ImageNet and the text-to-image models."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import rope
from bitdance_kernels.testing import Call, Case, Timing

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def table(
    T: int,
    D: int,
    device: torch.device,
    dtype: torch.dtype = F32,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Cosine and sine of random angles, [T, D / 2, 2]."""
    angles = torch.rand(T, D // 2, generator=generator) * 6
    return torch.stack((angles.cos(), angles.sin()), dim=-1).to(device, dtype)


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def call(
        name: str,
        shape: tuple[int, ...],
        interleaved: bool,
        dtype: torch.dtype = F32,
        table_dtype: torch.dtype = F32,
    ) -> Call:
        x = torch.randn(shape, generator=generator).to(device, dtype)
        freqs = table(shape[1], shape[3], device, table_dtype, generator)
        return Call(name, (x, freqs), {"interleaved": interleaved})

    for interleaved in (True, False):
        pairs = "interleaved" if interleaved else "halves"
        for dtype in (F32, F16, BF16):
            yield call(f"{pairs}, {dtype}", (2, 7, 3, 16), interleaved, dtype)
        for D in (32, 48, 80, 96, 128):
            yield call(f"{pairs}, D = {D}", (1, 2, 40, D), interleaved, BF16)
        yield call(f"{pairs}, many rows", (2, 50, 4, 64), interleaved, BF16)
        yield call(
            f"{pairs}, table of bfloat16", (1, 5, 2, 6), interleaved, torch.float32, torch.bfloat16
        )
        yield call(f"{pairs}, one pair", (1, 1, 1, 2), interleaved)
        yield call(f"{pairs}, no token", (2, 0, 3, 8), interleaved)


def _timing(name: str, shape: tuple[int, ...], dtype: torch.dtype, *devices: str) -> Timing:
    B, T, H, D = shape

    name = f"{name}, {str(dtype).removeprefix('torch.')}"

    def make(device: torch.device) -> Call:
        return Call(name, (torch.randn(shape, device=device).to(dtype), table(T, D, device)))

    moved = 2 * B * T * H * D * dtype.itemsize + 4 * T * D
    return Timing(name, make, moved, devices=devices)


def torch_complex(
    x: torch.Tensor, freqs: torch.Tensor, *, interleaved: bool = True
) -> torch.Tensor:
    """As the official code rotates: as complex numbers."""
    pairs = x.float().unflatten(-1, (-1, 2) if interleaved else (2, -1))
    pairs = pairs if interleaved else pairs.transpose(-1, -2).contiguous()
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(freqs)[:, None]
    result = torch.view_as_real(turned)
    return (result if interleaved else result.transpose(-1, -2)).flatten(-2).to(x.dtype)


CASES = (
    Case(
        op=rope,
        rule="rounded",
        samples=samples,
        timings=(
            _timing("ImageNet B, 4 images", (4, 319, 12, 64), F32, "cpu", "cuda"),
            _timing("ImageNet B, 64 images", (64, 319, 12, 64), BF16, "cuda"),
            _timing("14B, 18k tokens", (1, 18496, 40, 128), BF16, "cuda"),
        ),
        baselines={"torch": torch_complex},
        constants=(1,),
    ),
)
