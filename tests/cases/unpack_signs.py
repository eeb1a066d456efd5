"""unpack_signs: latents of a batch of images, and sizes that show the memory bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bitdance_kernels import unpack_signs
from bitdance_kernels.testing import Call, Case, Timing


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in [(5, 8), (1, 1), (0, 4), (3, 7, 5), (2, 1, 4, 32), (1,), (300, 17)]:
            packed = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
            yield Call(f"{list(shape)} {dtype}", (packed.to(device), dtype))


def _timing(name: str, shape: tuple[int, ...], dtype: torch.dtype, *devices: str) -> Timing:
    def make(device: torch.device) -> Call:
        return Call(name, (torch.randint(256, shape, dtype=torch.uint8, device=device), dtype))

    packed = int(np.prod(shape))
    return Timing(
        name, make, bytes=packed + packed * 8 * dtype.itemsize, devices=devices or ("cpu", "cuda")
    )


def numpy_unpackbits(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bits = np.unpackbits(packed.numpy(), axis=-1, bitorder="little")
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1).to(dtype)


def torch_expression(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return (((packed[..., None] >> shifts) & 1).to(dtype) * 2 - 1).flatten(-2)


def fill_alone(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a new tensor of that size costs alone: a large one is cleared by the system first."""
    return packed.new_empty((*packed.shape[:-1], 8 * packed.shape[-1]), dtype=dtype).fill_(1.0)


CASES = (
    Case(
        op=unpack_signs,
        rule="exact",
        samples=samples,
        timings=(
            _timing("16.8 M float32", (2**16, 32), torch.float32),
            _timing("16.8 M bfloat16", (2**16, 32), torch.bfloat16),
            _timing("4.2 M float32", (2**14, 32), torch.float32),
            _timing("one image [256, 32] float32", (256, 4), torch.float32),
            _timing("268 M float32", (2**23, 4), torch.float32, "cuda"),
            _timing("537 M bfloat16", (2**24, 4), torch.bfloat16, "cuda"),
        ),
        baselines={
            "numpy": numpy_unpackbits,
            "torch": torch_expression,
            "fill alone": fill_alone,
        },
    ),
)
