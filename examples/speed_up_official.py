"""Time a model of the authors' code before and after ``patch_official``.

``python examples/speed_up_official.py module:function`` calls your function, which builds the model
with the authors' code and loads its checkpoint, for example::

    def build():
        model = create_model(args, "cuda")
        model.load_state_dict(torch.load(path, weights_only=True)["ema"])
        return model

Then it draws the same images with and without this library's ops, from one seed. The function may
also return the authors' text-to-image pipeline, which draws ``--prompt``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance import patch_official


def find(name: str) -> Callable[[], Any]:
    """The function "module:function", from the working directory too."""
    sys.path.insert(0, str(Path.cwd()))
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def of_labels(model: Any, options: argparse.Namespace) -> torch.Tensor:
    """Images of an ImageNet model, with values in [-1, 1]."""
    labels = torch.tensor(options.labels, device=next(model.parameters()).device)
    torch.manual_seed(0)
    images = model.eval().sample(labels, sample_steps=options.steps, cfg_scale=options.cfg)
    return images.float().cpu()


def of_prompt(pipeline: Any, options: argparse.Namespace) -> torch.Tensor:
    """Images of a text-to-image pipeline, with values in [-1, 1]."""
    images = pipeline.generate(options.prompt, *options.size, options.steps, options.cfg, seed=0)
    return torch.stack([torch.from_numpy(np.array(image)) for image in images]) / 127.5 - 1


def best(draw: Callable[[], torch.Tensor], rounds: int) -> tuple[torch.Tensor, float]:
    """Images, and the shortest of some rounds after one to warm up."""
    images, seconds = draw(), []
    for _ in range(rounds):
        begin = time.perf_counter()
        images = draw()  # on the host, so all work is done
        seconds.append(time.perf_counter() - begin)
    return images, min(seconds)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", metavar="module:function", help="makes the authors' model")
    parser.add_argument("--labels", type=int, nargs="+", default=[207, 388, 0, 980])
    parser.add_argument("--prompt", default="a red fox in the snow", help="of text-to-image")
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 1024], help="height and width")
    parser.add_argument("--steps", type=int, default=50, help="noisy steps for a patch")
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    model = find(options.build)()
    draw = partial(of_prompt if hasattr(model, "gen_image") else of_labels, model, options)
    theirs, before = best(draw, options.rounds)
    patch_official(model)
    ours, after = best(draw, options.rounds)
    print(f"{len(ours)} images: {before:.2f} s before, {after:.2f} s after: {before / after:.2f}x")
    same = ((ours - theirs).abs() < 1.01 / 127.5).float().mean()
    print(f"{same:.1%} of the values are equal within one grey level")


if __name__ == "__main__":
    main()
