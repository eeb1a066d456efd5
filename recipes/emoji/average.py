"""A mean of the weights of two models, of which one was trained from the other.

    python recipes/emoji/average.py runs/emoji/model/model runs/emoji/shifted/model --out OUT

It keeps what the first knows of the training pictures, and what the second has learnt on shifted
copies of them (model soups, https://arxiv.org/abs/2203.05482).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bitdance.pipelines.text_to_image import BitDanceT2IPipeline


def average(
    first: BitDanceT2IPipeline, second: BitDanceT2IPipeline, weight: float
) -> BitDanceT2IPipeline:
    """The second pipeline, with weights ``(1 - weight) * first + weight * second``.

    Raises:
        ValueError: the models have different configurations.
    """
    if first.config != second.config:
        raise ValueError("average: both models must have one configuration")
    state = first.model.state_dict()
    with torch.no_grad():
        for name, tensor in second.model.state_dict().items():
            tensor.lerp_(state[name], 1 - weight)
    return second


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--weight", type=float, default=0.5, help="of the second (default: 0.5)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    models = [BitDanceT2IPipeline.from_pretrained(path) for path in (options.first, options.second)]
    average(*models, options.weight).save_pretrained(options.out)


if __name__ == "__main__":
    main()
