"""pack_signs: latents of a batch of images, and sizes that show the memory bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bitdance_kernels import pack_signs
from bitdance_kernels.testing import Call, Case, Timing, specials


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 64), (1, 8), (0, 32), (3, 7, 40), (2, 1, 4, 256), (8,), (300, 136)]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in shapes:
            x = torch.randn(shape, generator=generator).to(dtype)
            x.view(-1)[::3] = torch.tensor(specials(dtype), dtype=dtype).repeat(x.numel())[
                : x.view(-1)[::3].numel()
            ]
            yield Call(f"{list(shape)} {dtype}", (x.to(device),))


def _timing(name: str, shape: tuple[int, ...], dtype: torch.dtype, *devices: str) -> Timing:
    values = int(np.prod(shape))
    return Timing(
        name=name,
        make=lambda device: Call(name, (torch.randn(shape, device=device).to(dtype),)),
        bytes=values * dtype.itemsize + values // 8,
        devices=devices or ("cpu", "cuda"),
    )


def numpy_packbits(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.packbits(x.numpy() > 0, axis=-1, bitorder="little"))


def torch_expression(x: torch.Tensor) -> torch.Tensor:
    weights = 2 ** torch.arange(8, device=x.device)
    return ((x > 0).unflatten(-1, (-1, 8)) * weights).sum(-1).to(torch.uint8)


CASES = (
    Case(
        op=pack_signs,
        rule="exact",
        samples=samples,
        timings=(
            _timing("16.8 M float32", (2**16, 256), torch.float32),
            _timing("16.8 M bfloat16", (2**16, 256), torch.bfloat16),
            _timing("one image [256, 32] float32", (256, 32), torch.float32),
            _timing("268 M float32", (2**23, 32), torch.float32, "cuda"),
            _timing("537 M bfloat16", (2**24, 32), torch.bfloat16, "cuda"),
        ),
        baselines={"numpy": numpy_packbits, "torch": torch_expression},
    ),
)
