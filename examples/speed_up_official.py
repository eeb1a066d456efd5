"""Time a model of the authors' ImageNet code before and after ``patch_official``.

``python examples/speed_up_official.py module:function`` calls your function, which builds the model
with the authors' code and loads its checkpoint, for example::

    def build():
        model = create_model(args, "cuda")
        model.load_state_dict(torch.load(path, weights_only=True)["ema"])
        return model

Then it draws the same images with and without this library's ops, from one seed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bitdance import patch_official


def find(name: str) -> Callable[[], Any]:
    """The function "module:function", from the working directory too."""
    sys.path.insert(0, str(Path.cwd()))
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def draw(model: Any, labels: torch.Tensor, steps: int, cfg: float) -> tuple[torch.Tensor, float]:
    """Images of one seed, and the seconds that they took."""
    torch.manual_seed(0)
    begin = time.perf_counter()
    images = model.sample(labels, sample_steps=steps, cfg_scale=cfg)
    if images.is_cuda:
        torch.cuda.synchronize()
    return images.float().cpu(), time.perf_counter() - begin


def best(model: Any, rounds: int, *call: Any) -> tuple[torch.Tensor, float]:
    """Images, and the shortest of some rounds after one to warm up."""
    draw(model, *call)
    runs = [draw(model, *call) for _ in range(rounds)]
    return runs[-1][0], min(seconds for _, seconds in runs)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", metavar="module:function", help="makes the authors' model")
    parser.add_argument("--labels", type=int, nargs="+", default=[207, 388, 0, 980])
    parser.add_argument("--steps", type=int, default=50, help="noisy steps for a patch")
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    model = find(options.build)().eval()
    labels = torch.tensor(options.labels, device=next(model.parameters()).device)
    call = (labels, options.steps, options.cfg)
    theirs, before = best(model, options.rounds, *call)
    patch_official(model)
    ours, after = best(model, options.rounds, *call)
    print(
        f"{len(labels)} images: {before:.2f} s before, {after:.2f} s after: {before / after:.2f}x"
    )
    same = ((ours - theirs).abs() < 1 / 127.5).float().mean()
    print(f"{same:.1%} of the values are equal within one grey level")


if __name__ == "__main__":
    main()
