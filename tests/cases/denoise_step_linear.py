"""Samples of denoise_step_linear."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import denoise_schedule, denoise_step_linear, noise_keys, pack_weight
from bitdance_kernels.testing import Call, Case


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    table = denoise_schedule(10, time_shift=1.5)[0].to(device)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    half, brain = torch.float16, torch.bfloat16
    # shape of x, width, dtype of weight, step, cfg, source of the noise, packed, squash
    rows: tuple[tuple[tuple[int, ...], int, torch.dtype, int, float | None, str, bool, bool], ...]
    rows = (
        ((3, 4, 16), 32, torch.float32, 3, None, "noise", True, False),
        ((1, 32), 48, brain, 0, 4.0, "keys", True, False),
        ((2, 4, 32), 64, half, 10, 4.55, "keys", True, True),
        ((2, 64, 32), 32, brain, 4, 6.1, "noise", False, True),
        ((5, 7), 16, half, 9, None, "keys", False, False),
        ((3, 3, 5), 32, torch.float32, 7, 1.0, "keys", False, True),
        ((0, 4, 32), 32, torch.float32, 1, 3.9, "keys", True, False),
    )
    for shape, width, dtype, step, cfg, source, packed, squash in rows:
        stack = shape if cfg is None else (2 * shape[0], *shape[1:])
        weight = (draw(width, shape[-1]) / shape[-1] ** 0.5).to(dtype)
        weight = pack_weight(weight) if packed else weight
        at = torch.tensor(step, dtype=torch.int32, device=device)
        keys = noise_keys(2**40 + 7, range(5, 5 + shape[0]), ar_step=3, device=device)
        yield Call(
            f"{list(shape)} to {width} {dtype} step {step} cfg {cfg} {source}",
            (
                draw(*shape), draw(*stack, dtype=dtype), table, at if step % 2 else at.reshape(1),
                weight, None if shape[0] == 5 else draw(width, dtype=dtype),
            ),
            {
                "cfg": None if cfg is None else torch.tensor([cfg], device=device),
                "noise": draw(*shape) if source == "noise" else None,
                "keys": keys if source == "keys" else None,
                "squash": squash,
            },
        )  # fmt: skip


CASES = (Case(op=denoise_step_linear, rule="staged", samples=samples),)
