"""denoise_step: the states of whole batches of patches, at the model's head shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from bitdance_kernels import denoise_schedule, denoise_step, noise_keys
from bitdance_kernels.testing import Call, Case, Timing

_STEPS = 100  # of the ImageNet models


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


def _timing(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, source: str, *devices: str
) -> Timing:
    """A guided step; `source` of the noise is "keys" or "noise"."""

    def make(device: torch.device) -> Call:
        x = torch.randn(shape, device=device)
        x0 = torch.randn(2 * shape[0], *shape[1:], device=device).to(dtype)
        table = denoise_schedule(_STEPS)[0].to(device)
        step = torch.full((), 40, dtype=torch.int64, device=device)
        cfg = torch.full((), 4.0, device=device)
        if source == "keys":
            keys = noise_keys(0, range(shape[0]), device=device)
            return Call(name, (x, x0, table, step), {"cfg": cfg, "keys": keys})
        return Call(name, (x, x0, table, step), {"cfg": cfg, "noise": torch.randn_like(x)})

    values = math.prod(shape)
    words = values * (4 + 4 + 2 * dtype.itemsize)  # x, x', both halves of x0
    words += shape[0] * 24 if source == "keys" else values * 4
    return Timing(name, make, bytes=words, devices=devices or ("cpu", "cuda"))


def torch_expression(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    *,
    cfg: torch.Tensor,
    noise: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
) -> torch.Tensor:
    """The affine step op by op; without explicit noise, PyTorch's own generator draws it."""
    a, b, s = table.index_select(0, step.view(1))[0]  # table[step] would wait for the card
    conditional, unconditional = x0.float().chunk(2)
    guided = torch.lerp(unconditional, conditional, cfg)
    return a * x + b * guided + s * (torch.randn_like(x) if noise is None else noise)


def official_update(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    *,
    cfg: torch.Tensor,
    noise: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
) -> torch.Tensor:
    """Velocities, guidance, score and Euler-Maruyama step, as the published sampler writes them."""
    a, b, s = table.index_select(0, step.view(1))[0]  # table[step] would wait for the card
    dt = 1 - a - b
    t = 1 - s.square() / (2 * dt)
    both = torch.cat((x, x))
    velocity = (x0.float() - both) / (1 - t).clamp_min(0.05)
    conditional, unconditional = velocity.chunk(2)
    velocity = unconditional + cfg * (conditional - unconditional)
    score = (t * velocity - x) / (1 - t)
    drift = velocity + (1 - t) * score
    eps = torch.randn_like(x) if noise is None else noise
    return x + drift * dt + torch.sqrt(2 * (1 - t) * dt) * eps


CASES = (
    Case(
        op=denoise_step,
        rule="rounded",
        samples=samples,
        timings=(
            _timing("B-16x batch 1 [1, 16, 32] bfloat16", (1, 16, 32), torch.bfloat16, "keys"),
            _timing("B-16x batch 64 [64, 16, 32] bfloat16", (64, 16, 32), torch.bfloat16, "keys"),
            _timing("B-16x batch 64 [64, 16, 32] float32", (64, 16, 32), torch.float32, "keys"),
            _timing("B-1x batch 384 [384, 1, 32] bfloat16", (384, 1, 32), torch.bfloat16, "keys"),
            _timing("14B-64x batch 1 [1, 64, 32] bfloat16", (1, 64, 32), torch.bfloat16, "keys"),
            _timing("B-16x batch 64 with noise", (64, 16, 32), torch.bfloat16, "noise"),
            _timing("33.5 M bfloat16", (2**16, 16, 32), torch.bfloat16, "keys", "cuda"),
            _timing("33.5 M with noise", (2**16, 16, 32), torch.bfloat16, "noise", "cuda"),
        ),
        baselines={"torch": torch_expression, "official": official_update},
    ),
)
