"""swiglu: the hidden layers of the heads (1.5 C) and of the transformer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bitdance_kernels import swiglu
from bitdance_kernels.testing import Call, Case, Timing


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in [(300, 48), (3, 5, 14), (2,), (0, 8), (1, 256)]:
            h = 3 * torch.randn(shape, generator=generator)
            yield Call(f"{list(shape)} {dtype}", (h.to(device, dtype),))
    extremes = torch.tensor([[-100.0, -20.0, 0.0, 20.0, 100.0] * 2], device=device)
    yield Call("saturated", (extremes,))


def _timing(rows: int, hidden: int, dtype: torch.dtype, *devices: str) -> Timing:
    name = f"[{rows}, 2 x {hidden}] {str(dtype).removeprefix('torch.')}"
    return Timing(
        name,
        lambda device: Call(name, (torch.randn(rows, 2 * hidden, device=device).to(dtype),)),
        bytes=3 * rows * hidden * dtype.itemsize,
        devices=devices or ("cpu", "cuda"),
    )


def torch_expression(h: torch.Tensor) -> torch.Tensor:
    gate, value = h.chunk(2, dim=-1)
    return F.silu(gate) * value


CASES = (
    Case(
        op=swiglu,
        rule="rounded",
        samples=samples,
        timings=(
            _timing(2048, 1152, torch.float32),
            _timing(128, 7680, torch.float32),
            _timing(12288, 1152, torch.bfloat16, "cuda"),
            _timing(8192, 7680, torch.bfloat16, "cuda"),
            _timing(32, 1152, torch.bfloat16, "cuda"),
        ),
        baselines={"torch": torch_expression},
    ),
)
