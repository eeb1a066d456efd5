"""Time of an AR step of the head, with random weights and guidance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import products, timing
from bitdance.models.config import PRESETS, HeadConfig
from bitdance.models.diffusion_head import HeadNetwork
from bitdance.sampling.flow_sampler import Schedule, denoise, make_head
from bitdance_kernels import noise_keys, use_backend


@torch.no_grad()
def sampling(
    preset: str = "B-16x", images: int = 8, steps: int = 20, rounds: int = 5
) -> dict[str, Any]:
    """How near ``HeadRunner`` comes to the time of its matrix products alone.

    "plain" is the published way; "products" are those that the runner does, called one after
    another on tensors of the same shapes.
    """
    config = PRESETS[preset]
    network, cond = _inputs(config.head, config.parallel_num, images)
    schedule = Schedule.of(network, steps)
    keys, cfg = noise_keys(0, range(images)), torch.full((), 3.0)
    fast, plain = (make_head(network, schedule, *_sizes(cond), fused) for fused in (True, False))
    fast.load()
    runner = functools.partial(denoise, fast, schedule, cond, cfg=cfg, keys=keys)

    def plainly() -> None:
        with use_backend("reference"):
            denoise(plain, schedule, cond, cfg=cfg, keys=keys)

    recorded = products.record(runner, list(network.parameters()))
    ways: dict[str, Callable[[], object]] = {
        "runner": runner, "plain": plainly, "products": lambda: products.replay(recorded),
    }  # fmt: skip
    seconds = timing.medians(timing.take_turns(ways, rounds))
    return {
        "preset": preset,
        "images": images,
        "steps": steps,
        "seconds": seconds,
        "runner / products": seconds["runner"] / seconds["products"],
        "plain / runner": seconds["plain"] / seconds["runner"],
    }


def _inputs(config: HeadConfig, patch: int, images: int) -> tuple[HeadNetwork, Tensor]:
    """A head with random weights, those that begin at 0 too, and its conditioning."""
    torch.manual_seed(0)
    network = HeadNetwork(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    shape = (2 * images, *(() if patch == 1 else (patch,)), config.ch_cond)
    return network, torch.randn(shape)


def _sizes(cond: Tensor) -> tuple[int, int | None]:
    return len(cond), cond.shape[1] if cond.dim() > 2 else None
