"""How near the head's sampling comes to the time of its matrix products alone.

``python -m benchmarks.model.head_sampling`` times one AR step of a head with random weights three
ways that take turns: as ``HeadRunner`` runs it, as published (mode "plain"), and the matrix
products alone, called one after another on tensors of the same shapes. With ``--generate`` also
whole pictures of the model that comes with the library, fast and plain. ``--json FILE`` writes what
it prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.machine import describe
from bitdance import BitDance
from bitdance.models.config import PRESETS, HeadConfig
from bitdance.models.diffusion_head import HeadNetwork, PatchBlock, TokenBlock
from bitdance.sampling.flow_sampler import Schedule, denoise, make_head
from bitdance_kernels import noise_keys, use_backend


def products(network: HeadNetwork, rows: int, patch: int, evaluations: int) -> Callable[[], None]:
    """All matrix products of an AR step, in their order, without anything between them."""
    config = network.config
    wide = rows * patch
    inputs = {
        n: torch.randn(wide, n)
        for n in {layer.in_features for layer in network.modules() if isinstance(layer, nn.Linear)}
    }
    heads = (rows, config.num_heads, patch, config.ch_latent // config.num_heads)
    q, k, v = (torch.randn(heads) for _ in range(3))
    p = torch.rand(*heads[:3], patch)
    calls: list[tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = []

    def linear(layer: nn.Linear) -> None:
        calls.append((F.linear, (inputs[layer.in_features], layer.weight, layer.bias)))

    linear(network.input_proj)
    for layer in (*network.ada_ln_blocks, network.final_layer.ada_ln_modulation):
        linear(layer)
    for block in network.res_blocks:
        assert isinstance(block, (TokenBlock, PatchBlock))
        if isinstance(block, PatchBlock):
            linear(block.attn.wqkv)
            calls.append((torch.matmul, (q, k.mT)))
            calls.append((torch.matmul, (p, v)))
            linear(block.attn.wo)
        linear(block.w1)
        linear(block.w2)
    linear(network.final_layer.linear)

    def run() -> None:
        F.linear(inputs[config.ch_cond], network.cond_embed.weight, network.cond_embed.bias)
        for _ in range(evaluations):
            for function, arguments in calls:
                function(*arguments)

    return run


def take_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, run in ways.items():
            begin = time.perf_counter()
            run()
            if i:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.no_grad()
def sampling(
    config: HeadConfig, patch: int, images: int, steps: int, rounds: int
) -> dict[str, float]:
    """Seconds of an AR step with guidance."""
    torch.manual_seed(0)
    network = HeadNetwork(config).eval()
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    schedule = Schedule.of(network, steps)
    rows, shape = 2 * images, () if patch == 1 else (patch,)
    cond = torch.randn(rows, *shape, config.ch_cond)
    keys, cfg = noise_keys(0, range(images)), torch.full((), 3.0)
    fast, plain = (
        make_head(network, schedule, rows, patch if patch > 1 else None, mode)
        for mode in ("fast", "plain")
    )
    fast.load()

    def plainly() -> None:
        with use_backend("reference"):
            denoise(plain, schedule, cond, cfg=cfg, keys=keys)

    return take_turns(
        {
            "runner": lambda: denoise(fast, schedule, cond, cfg=cfg, keys=keys),
            "plain": plainly,
            "products": products(network, rows, patch, steps + 1),
        },
        rounds,
    )


def pictures(images: int, rounds: int) -> dict[str, float]:
    """Seconds of `images` pictures of the bundled model."""
    pipeline = BitDance.from_pretrained("fashion")
    labels = [i % 10 for i in range(images)]

    def generate(mode: str) -> Callable[[], object]:
        return lambda: pipeline.generate(labels, progress=False, mode=mode)  # type: ignore[arg-type]

    return take_turns({mode: generate(mode) for mode in ("fast", "plain")}, rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="B-16x")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="noisy steps, after which comes one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--generate", action="store_true", help="whole pictures too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    config = PRESETS[options.preset]
    seconds = sampling(
        config.head, config.parallel_num, options.images, options.steps, options.rounds
    )
    found = {
        "machine": describe(torch.device("cpu"), torch.get_num_threads()),
        "preset": options.preset,
        "images": options.images,
        "steps": options.steps,
        "seconds": seconds,
        "runner / products": seconds["runner"] / seconds["products"],
        "plain / runner": seconds["plain"] / seconds["runner"],
    }
    if options.generate:
        for images in (1, 8):
            found[f"fashion, {images} pictures, seconds"] = pictures(images, 3 * options.rounds)
    text = json.dumps(found, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
