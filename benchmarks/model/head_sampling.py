"""How near the head's sampling comes to the time of its matrix products alone.

``python -m benchmarks.model.head_sampling`` times one AR step of a head with random weights three
ways that take turns: as ``HeadRunner`` runs it, as published ("plain"), and the products that
the runner does, called one after another on tensors of the same shapes. With ``--generate`` also
whole pictures of the model that comes with the library, fast and plain. ``--json FILE`` writes the
figures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import products, timing
from benchmarks.model import program
from bitdance import BitDancePipeline
from bitdance.models.config import PRESETS, HeadConfig
from bitdance.sampling.flow_sampler import Schedule, denoise, make_head
from bitdance_kernels import noise_keys, use_backend


def sampling(
    config: HeadConfig, patch: int, images: int, steps: int, rounds: int
) -> dict[str, float]:
    """Median seconds of an AR step with guidance."""
    network = program.random_head(config, torch.device("cpu"), torch.float32)
    schedule, rows = Schedule.of(network, steps), 2 * images
    cond = torch.randn(rows, *(() if patch == 1 else (patch,)), config.ch_cond)
    keys, cfg = noise_keys(0, range(images)), torch.full((), 3.0)
    fast, plain = (
        make_head(network, schedule, rows, patch if patch > 1 else None, use_kernels)
        for use_kernels in (True, False)
    )
    fast.load()
    runner = functools.partial(denoise, fast, schedule, cond, cfg=cfg, keys=keys)

    def plainly() -> None:
        with use_backend("reference"):
            denoise(plain, schedule, cond, cfg=cfg, keys=keys)

    recorded = products.record(runner, list(network.parameters()))
    ways: dict[str, Callable[[], object]] = {
        "runner": runner, "plain": plainly, "products": lambda: products.replay(recorded),
    }  # fmt: skip
    return timing.medians(timing.take_turns(ways, rounds))


def pictures(images: int, rounds: int) -> dict[str, float]:
    """Median seconds of `images` pictures of the bundled model."""
    pipeline = BitDancePipeline.from_pretrained("fashion")
    pipeline.set_progress_bar_config(disable=True)
    labels = [i % 10 for i in range(images)]
    ways = {
        name: functools.partial(pipeline, labels, use_kernels=name == "fast")
        for name in ("fast", "plain")
    }
    return timing.medians(timing.take_turns(ways, rounds))


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = program.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="B-16x")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="noisy steps, after which comes one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--generate", action="store_true", help="whole pictures too")
    options = parser.parse_args()
    config = PRESETS[options.preset]

    def measure() -> dict[str, Any]:
        shape = (config.head, config.parallel_num, options.images, options.steps)
        seconds = sampling(*shape, options.rounds)
        figures: dict[str, Any] = {
            "preset": options.preset,
            "images": options.images,
            "steps": options.steps,
            "seconds": seconds,
            "runner / products": seconds["runner"] / seconds["products"],
            "plain / runner": seconds["plain"] / seconds["runner"],
        }
        for images in (1, 8) if options.generate else ():
            figures[f"fashion, {images} pictures, seconds"] = pictures(images, 3 * options.rounds)
        return figures

    program.main(options, measure)


if __name__ == "__main__":
    main()
