"""Which way to do the head's products is the fastest for how many tokens.

``python -m benchmarks.model.head_plans`` times an AR step of heads with random weights, guided, by
every plan of ``bitdance.sampling.head_products``, which take turns: on a card as a CUDA graph in
bfloat16, else call by call in float32. The result belongs into ``FASTEST`` of that module.
``--json FILE`` writes the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.model import program
from bitdance.models.config import PRESETS, HeadConfig
from bitdance.models.diffusion_head import HeadNetwork
from bitdance.sampling import graphs
from bitdance.sampling.flow_sampler import Schedule, denoise, make_head
from bitdance.sampling.head_products import PLANS
from bitdance_kernels import noise_keys


def ar_step(
    network: HeadNetwork, schedule: Schedule, cond: Tensor, products: str
) -> Callable[[], object]:
    """An AR step on `cond` [2 R, (P,) ch_cond], captured where there is a card."""
    patch = cond.shape[1] if cond.dim() > 2 else None
    head = make_head(network, schedule, len(cond), patch, products=products)
    head.load()
    keys = noise_keys(0, range(len(cond) // 2), device=cond.device)
    cfg = torch.full((), 3.0, device=cond.device)
    step = graphs.make_runner(cond.device)

    def run() -> None:
        step(lambda: (denoise(head, schedule, cond, cfg=cfg, keys=keys),))
        if cond.is_cuda:
            torch.cuda.synchronize(cond.device)

    return run


def compare(
    config: HeadConfig, patch: int, images: int, steps: int, rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of an AR step by each plan."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    network = program.random_head(config, device, dtype)
    schedule = Schedule.of(network, steps)
    shape = (2 * images, *(() if patch == 1 else (patch,)), config.ch_cond)
    cond = torch.randn(shape, device=device, dtype=dtype)
    ways = {name: ar_step(network, schedule, cond, name) for name in PLANS}
    for way in ways.values():
        way()  # the first call warms up, the second one captures
    return timing.medians(timing.take_turns(ways, rounds))


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = program.parser(__doc__)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["B-1x", "B-16x"])
    parser.add_argument("--images", nargs="+", type=int, default=[1, 2, 8, 64, 384])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def measure() -> dict[str, object]:
        plans = []
        for preset in options.presets:
            head, patch = PRESETS[preset].head, PRESETS[preset].parallel_num
            for images in options.images:
                seconds = compare(head, patch, images, options.steps, options.rounds, device)
                what = {"preset": preset, "images": images, "tokens": 2 * images * patch}
                plans.append({**what, "seconds": seconds})
        return {"plans": plans}

    program.main(options, measure, device.type)


if __name__ == "__main__":
    main()
