"""Samples of gated_residual and gated_residual_adaln."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from bitdance_kernels import gated_residual, gated_residual_adaln
from bitdance_kernels.testing import Call, Case


def _samples(tensors: int) -> Callable[[torch.device], Iterator[Call]]:
    """Calls of an op on x, h and `tensors` - 2 chunks of one modulation tensor."""

    def samples(device: torch.device) -> Iterator[Call]:
        generator = torch.Generator().manual_seed(0)

        def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            chunks = make(5, 6 * 24, dtype=dtype).chunk(6, dim=-1)[: tensors - 2]
            rows = (make(5, 24, dtype=dtype), make(5, 24, dtype=dtype), *chunks)
            yield Call(f"5 rows, chunks of one tensor, {dtype}", rows)
            many = tuple(make(300, 40, dtype=dtype) for _ in range(tensors))
            yield Call(f"300 rows, {dtype}", many)
        mixed = (make(3, 4, 7, dtype=torch.bfloat16), *(make(3, 4, 7) for _ in range(tensors - 1)))
        yield Call("bfloat16 with float32, odd width", mixed)
        yield Call("one row", tuple(make(16) for _ in range(tensors)))
        yield Call("no row", tuple(make(0, 8) for _ in range(tensors)))
        if tensors > 3:
            affine = {"weight": make(8), "bias": make(8)}
            yield Call("affine", tuple(make(6, 8) for _ in range(tensors)), affine)
        for width, dtype in ((64, torch.float32), (192, torch.float16), (768, torch.bfloat16),
                             (1280, torch.float16), (5120, torch.bfloat16)):  # fmt: skip
            wide = tuple(make(3, width, dtype=dtype) for _ in range(tensors))
            yield Call(f"3 rows of {width}, {dtype}", wide)

    return samples


CASES = (
    Case(op=gated_residual, rule="rounded", samples=_samples(3)),
    Case(op=gated_residual_adaln, rule="staged", samples=_samples(5)),
)
