"""Samples of denoise_step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import denoise_schedule, denoise_step, noise_keys
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    table = denoise_schedule(10, time_shift=1.5)[0].to(device)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    # shape of x, dtype of x0, step, cfg, source of the noise
    rows: tuple[tuple[tuple[int, ...], torch.dtype, int, float | None, str], ...] = (
        ((5, 4, 32), torch.float32, 3, None, "noise"),
        ((1, 8), torch.float32, 0, None, "keys"),
        ((0, 16, 32), torch.float32, 1, 3.9, "keys"),
        ((3, 7, 5), torch.float32, 9, 4.55, "keys"),
        ((2, 16, 32), torch.bfloat16, 4, 6.1, "keys"),
        ((6, 1, 1, 40), torch.float16, 7, 1.0, "noise"),
        ((2, 64, 32), torch.bfloat16, 10, 7.5, "noise"),
        ((300, 33), torch.float16, 6, None, "keys"),
        ((257, 24), torch.bfloat16, 5, 2.5, "noise"),
    )
    for shape, dtype, step, cfg, source in rows:
        stack = shape if cfg is None else (2 * shape[0], *shape[1:])
        x, x0 = draw(*shape).to(device), draw(*stack).to(device, dtype)
        at = torch.tensor(step, dtype=torch.int32, device=device)
        scale = None if cfg is None else torch.tensor([cfg], device=device)
        yield Call(
            f"{list(shape)} {dtype} step {step} cfg {cfg} {source}",
            (x, x0, table, at if step % 2 else at.long().reshape(1)),
            {
                "cfg": scale,
                "noise": draw(*shape).to(device) if source == "noise" else None,
                "keys": noise_keys(2**40 + 7, range(5, 5 + shape[0]), ar_step=3, device=device)
                if source == "keys"
                else None,
            },
        )


CASES = (Case(op=denoise_step, rule="rounded", samples=samples),)
