"""Time of an AR step of the head, with random weights and guidance."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import products, timing
from bitdance.models.config import PRESETS, HeadConfig
from bitdance.models.diffusion_head import HeadNetwork
from bitdance.sampling import graphs
from bitdance.sampling.flow_sampler import Schedule, denoise, make_head
from bitdance.sampling.head_products import PLANS
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


@torch.no_grad()
def plans(
    presets: Sequence[str] = ("B-1x", "B-16x"), batches: Sequence[int] = (1, 2, 8, 64, 384),
    steps: int = 50, rounds: int = 20,
) -> dict[str, Any]:  # fmt: skip
    """Seconds by every plan of ``bitdance.sampling.head_products``, for ``FASTEST`` there.

    On a card an AR step is a CUDA graph in bfloat16, else it goes call by call in float32.
    """
    device, rows = "cuda" if torch.cuda.is_available() else "cpu", []
    for preset in presets:
        head, patch = PRESETS[preset].head, PRESETS[preset].parallel_num
        for images in batches:
            network, cond = _inputs(head, patch, images, device)
            schedule = Schedule.of(network, steps)
            ways = {name: _ar_step(network, schedule, cond, name) for name in PLANS}
            for way in ways.values():
                way()  # the first call warms up, the second one captures
            seconds = timing.medians(timing.take_turns(ways, rounds))
            what = {"preset": preset, "images": images, "tokens": 2 * images * patch}
            rows.append({**what, "seconds": seconds})
    return {"device": device, "plans": rows}


def _inputs(
    config: HeadConfig, patch: int, images: int, device: str = "cpu"
) -> tuple[HeadNetwork, Tensor]:
    """A head with random weights, those that begin at 0 too, and its conditioning."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    network = HeadNetwork(config).eval().requires_grad_(False).to(device, dtype)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    shape = (2 * images, *(() if patch == 1 else (patch,)), config.ch_cond)
    return network, torch.randn(shape, device=device, dtype=dtype)


def _sizes(cond: Tensor) -> tuple[int, int | None]:
    return len(cond), cond.shape[1] if cond.dim() > 2 else None


def _ar_step(
    network: HeadNetwork, schedule: Schedule, cond: Tensor, products: str
) -> Callable[[], object]:
    """An AR step on `cond` [2 R, (P,) ch_cond], captured where there is a card."""
    head = make_head(network, schedule, *_sizes(cond), products=products)
    head.load()
    keys = noise_keys(0, range(len(cond) // 2), device=cond.device)
    cfg = torch.full((), 3.0, device=cond.device)
    step = graphs.make_runner(cond.device)

    def run() -> None:
        step(lambda: (denoise(head, schedule, cond, cfg=cfg, keys=keys),))
        if cond.is_cuda:
            torch.cuda.synchronize(cond.device)

    return run
