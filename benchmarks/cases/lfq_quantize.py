"""lfq_quantize: the latents of a training batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import lfq_quantize, pack_signs
from bitdance_kernels.testing import Call, Case, Timing, specials


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in [(5, 64), (1, 8), (0, 32), (3, 7, 40), (8,)]:
            x = torch.randn(shape, generator=generator).to(device, dtype)
            yield Call(f"{list(shape)} {dtype}", (x,))
        x = torch.tensor([*specials(dtype)] * 8, dtype=dtype, device=device)
        yield Call(f"special values, {dtype}", (x,))


def _make(device: torch.device) -> Call:
    return Call("16384 tokens of 256 bits", (torch.randn(2**14, 256, device=device),))


def torch_expression(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.where(x > 0, 1.0, -1.0), pack_signs(x)


CASES = (
    Case(
        op=lfq_quantize,
        rule="exact",
        samples=samples,
        timings=(Timing("16384 tokens of 256 bits", _make, bytes=2**22 * 8 + 2**19),),
        baselines={"where, pack_signs": torch_expression},
    ),
)
