"""lfq_quantize: the latents of a training batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bitdance_kernels import lfq_quantize, lfq_quantize_commitment, pack_signs
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


def commitment_samples(device: torch.device) -> Iterator[Call]:
    yield from (call for call in samples(device) if not call.name.startswith("special"))


def torch_commitment(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    signs = torch.where(x > 0, 1.0, -1.0)
    return x + (signs - x).detach(), pack_signs(x.detach()), F.mse_loss(x, signs)


CASES = (
    Case(
        op=lfq_quantize,
        rule="exact",
        samples=samples,
        timings=(Timing("16384 tokens of 256 bits", _make, bytes=2**22 * 8 + 2**19),),
        baselines={"where, pack_signs": torch_expression},
    ),
    Case(
        op=lfq_quantize_commitment,
        rule="staged",
        samples=commitment_samples,
        timings=(
            Timing(
                "16384 tokens of 256 bits, with backward",
                _make,
                bytes=2**22 * 20 + 2**19,
                backward=True,
            ),
        ),
        baselines={"where, pack_signs, mse_loss": torch_commitment},
    ),
)
