"""finalize_bits: the last predictions of whole batches of patches, at the model's head shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from bitdance_kernels import finalize_bits
from bitdance_kernels.testing import Call, Case, Timing, specials


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    rows: tuple[tuple[tuple[int, ...], float | None], ...] = (
        ((5, 32), None),
        ((10, 4, 32), 4.0),
        ((2, 8), 1.0),
        ((0, 16, 32), 3.9),
        ((3, 7, 40), None),
        ((4, 1, 3, 8), 6.1),
        ((600, 136), 7.5),
    )
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape, cfg in rows:
            x0 = torch.randn(shape, generator=generator).to(dtype)
            every_third = x0.view(-1)[::3]
            values = torch.tensor(specials(dtype), dtype=dtype)
            every_third.copy_(values.repeat(every_third.numel())[: every_third.numel()])
            scale = None if cfg is None else torch.tensor(cfg, device=device)
            yield Call(f"{list(shape)} {dtype} cfg {cfg}", (x0.to(device),), {"cfg": scale})


def _timing(name: str, shape: tuple[int, ...], dtype: torch.dtype, *devices: str) -> Timing:
    """Guided predictions for `shape` states."""

    def make(device: torch.device) -> Call:
        x0 = torch.randn(2 * shape[0], *shape[1:], device=device).to(dtype)
        return Call(name, (x0,), {"cfg": torch.full((), 4.0, device=device)})

    values = math.prod(shape)
    return Timing(
        name,
        make,
        bytes=values * 3 * dtype.itemsize + values // 8,
        devices=devices or ("cpu", "cuda"),
    )


def torch_expression(x0: torch.Tensor, *, cfg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    conditional, unconditional = x0.float().chunk(2)
    bits = torch.lerp(unconditional, conditional, cfg) > 0
    weights = 2 ** torch.arange(8, device=x0.device)
    packed = (bits.unflatten(-1, (-1, 8)) * weights).sum(-1).to(torch.uint8)
    return bits.to(x0.dtype) * 2 - 1, packed


CASES = (
    Case(
        op=finalize_bits,
        rule="exact",
        samples=samples,
        timings=(
            _timing("B-16x batch 1 [1, 16, 32] bfloat16", (1, 16, 32), torch.bfloat16),
            _timing("B-16x batch 64 [64, 16, 32] bfloat16", (64, 16, 32), torch.bfloat16),
            _timing("B-1x batch 384 [384, 1, 32] bfloat16", (384, 1, 32), torch.bfloat16),
            _timing("14B-64x batch 1 [1, 64, 32] bfloat16", (1, 64, 32), torch.bfloat16),
            _timing("33.5 M bfloat16", (2**16, 16, 32), torch.bfloat16, "cuda"),
            _timing("33.5 M float32", (2**16, 16, 32), torch.float32, "cuda"),
        ),
        baselines={"torch": torch_expression},
    ),
)
