"""Measure a model of the authors' code before and after ``patch_official``.

``python examples/speed_up_official.py module:function`` calls your function, which builds the model
with the authors' code and loads its checkpoint, for example::

    def build():
        model = create_model(args, "cuda")
        model.load_state_dict(torch.load(path, weights_only=True)["ema"])
        return model

Then it generates the same images with and without this library's ops, from one seed. The function
may also return the authors' text-to-image pipeline, which generates ``--prompt``.
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


def import_function(name: str) -> Callable[[], Any]:
    """The function "module:function", also from the working directory."""
    sys.path.insert(0, str(Path.cwd()))
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def generate_classes(model: Any, options: argparse.Namespace) -> torch.Tensor:
    """Images of an ImageNet model, with values in [-1, 1]."""
    labels = torch.tensor(options.labels, device=next(model.parameters()).device)
    torch.manual_seed(0)
    images = model.eval().sample(
        labels, sample_steps=options.num_inference_steps, cfg_scale=options.guidance_scale
    )
    return images.float().cpu()


def generate_prompt(pipeline: Any, options: argparse.Namespace) -> torch.Tensor:
    """Images of a text-to-image pipeline, with values in [-1, 1]."""
    steps, scale = options.num_inference_steps, options.guidance_scale
    images = pipeline.generate(options.prompt, *options.size, steps, scale, seed=0)
    return torch.stack([torch.from_numpy(np.array(image)) for image in images]) / 127.5 - 1


def measure(generate: Callable[[], torch.Tensor], rounds: int) -> tuple[torch.Tensor, float]:
    """Images, and the shortest of some rounds after a warm-up."""
    images, seconds = generate(), []
    for _ in range(rounds):
        start = time.perf_counter()
        images = generate()  # on the CPU, so all work is finished
        seconds.append(time.perf_counter() - start)
    return images, min(seconds)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", metavar="module:function", help="builds the authors' model")
    parser.add_argument("--labels", type=int, nargs="+", default=[207, 388, 0, 980])
    parser.add_argument("--prompt", default="a red fox in the snow", help="for text-to-image")
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 1024], help="height and width")
    parser.add_argument("--num-inference-steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    model = import_function(options.build)()
    generate = partial(
        generate_prompt if hasattr(model, "gen_image") else generate_classes, model, options
    )
    original, before = measure(generate, options.rounds)
    patch_official(model)
    patched, after = measure(generate, options.rounds)
    print(
        f"{len(patched)} images: {before:.2f} s before, {after:.2f} s after: {before / after:.2f}x"
    )
    same = ((patched - original).abs() < 1.01 / 127.5).float().mean()
    print(f"{same:.1%} of the values are equal within one grey level")


if __name__ == "__main__":
    main()
