"""Which way to do the head's products is the fastest for how many tokens.

``python -m benchmarks.model.head_plans`` times an AR step of heads with random weights, guided, by
every plan of ``bitdance.sampling.head_products``, which take turns: on a card as a CUDA graph in
bfloat16, else call by call in float32. Its result belongs into ``FASTEST`` of that module.
``--json FILE`` writes what it prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.machine import describe
from bitdance.models.config import PRESETS, HeadConfig
from bitdance.models.diffusion_head import HeadNetwork
from bitdance.sampling import graphs
from bitdance.sampling.flow_sampler import Schedule, denoise, make_head
from bitdance.sampling.head_products import PLANS
from bitdance_kernels import noise_keys


def ar_step(
    network: HeadNetwork, schedule: Schedule, cond: torch.Tensor, products: str
) -> Callable[[], object]:
    """An AR step on `cond` [2 R, (P,) ch_cond], captured where there is a card."""
    patch = cond.shape[1] if cond.dim() > 2 else None
    head = make_head(network, schedule, len(cond), patch, "fast", products)
    head.load()
    keys = noise_keys(0, range(len(cond) // 2), device=cond.device)
    cfg = torch.full((), 3.0, device=cond.device)
    step = graphs.step_for(cond.device)
    return lambda: step(lambda: (denoise(head, schedule, cond, cfg=cfg, keys=keys),))


@torch.no_grad()
def compare(
    config: HeadConfig, patch: int, images: int, steps: int, rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of an AR step by each plan."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    network = HeadNetwork(config).eval().to(device, dtype)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    schedule = Schedule.of(network, steps)
    shape = (2 * images, *(() if patch == 1 else (patch,)), config.ch_cond)
    cond = torch.randn(shape, device=device, dtype=dtype)
    ways = {name: ar_step(network, schedule, cond, name) for name in PLANS}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 2):
        for name, run in ways.items():
            begin = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if i >= 2:  # the first round warms up, the second captures
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["B-1x", "B-16x"])
    parser.add_argument("--images", nargs="+", type=int, default=[1, 2, 8, 64, 384])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for preset in options.presets:
        config = PRESETS[preset]
        for images in options.images:
            seconds = compare(
                config.head, config.parallel_num, images, options.steps, options.rounds, device
            )
            tokens = 2 * images * config.parallel_num
            found.append({"preset": preset, "images": images, "tokens": tokens, "seconds": seconds})
            print(preset, f"{images} images, {tokens} tokens:", *_relative(seconds), flush=True)
    if options.json is not None:
        machine = describe(device, torch.get_num_threads())
        text = json.dumps({"machine": machine, "plans": found}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


def _relative(seconds: dict[str, float]) -> list[str]:
    least = min(seconds.values())
    return [f"{name} {1e3 * s:.3f} ms ({s / least:.2f})" for name, s in seconds.items()]


if __name__ == "__main__":
    main()
