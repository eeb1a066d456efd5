"""gated_residual and gated_residual_adaln: the joints between the blocks of a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from bitdance_kernels import gated_residual, gated_residual_adaln
from bitdance_kernels.testing import Call, Case, Timing


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


def _timing(
    tensors: int, results: int, rows: int, width: int, dtype: torch.dtype, *devices: str
) -> Timing:
    name = f"[{rows}, {width}] {str(dtype).removeprefix('torch.')}"

    def make(device: torch.device) -> Call:
        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device).to(dtype)

        chunks = randn(rows, 6 * width).chunk(6, dim=-1)[: tensors - 2]
        return Call(name, (randn(rows, width), randn(rows, width), *chunks))

    moved = (tensors + results) * rows * width * dtype.itemsize
    return Timing(name, make, moved, devices=devices or ("cpu", "cuda"))


def _timings(tensors: int, results: int) -> tuple[Timing, ...]:
    return (
        _timing(tensors, results, 2048, 768, torch.float32),
        _timing(tensors, results, 128, 5120, torch.float32),
        _timing(tensors, results, 12288, 768, torch.bfloat16, "cuda"),
        _timing(tensors, results, 8192, 5120, torch.bfloat16, "cuda"),
        _timing(tensors, results, 32, 768, torch.bfloat16, "cuda"),
    )


def torch_sum(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return x + gate * h


def torch_sum_and_norm(
    x: torch.Tensor,
    h: torch.Tensor,
    gate: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    **affine: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + gate * h
    return total, F.layer_norm(total, x.shape[-1:], eps=1e-6, **affine) * (1 + scale) + shift


CASES = (
    Case(
        op=gated_residual,
        rule="rounded",
        samples=_samples(3),
        timings=_timings(3, 1),
        baselines={"torch": torch_sum},
    ),
    Case(
        op=gated_residual_adaln,
        rule="staged",
        samples=_samples(5),
        timings=_timings(5, 2),
        baselines={"torch": torch_sum_and_norm},
    ),
)
