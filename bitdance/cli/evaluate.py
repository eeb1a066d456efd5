"""``bitdance evaluate``: how good a model is on its data set."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import (
    CONFIG_HELP,
    DATA_HELP,
    MODEL_HELP,
    add_device_argument,
    add_image_arguments,
    add_quantization_argument,
    add_sampling_arguments,
    positive_int,
)
from bitdance.cli.report import Report, add_json_argument
from bitdance.data.idx import is_idx
from bitdance.data.image_folders import class_names
from bitdance.data.images import open_images
from bitdance.evaluation.evaluate import evaluate, write
from bitdance.io.image_files import printable
from bitdance.io.outputs import check_folder
from bitdance.pipelines.class_conditional import BitDancePipeline

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a model on its data set",
        description="Reconstruction error, share of samples that a classifier recognizes, Fréchet "
        "distance in its features, and how evenly bits are used.",
    )
    parser.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    parser.add_argument("--model", default="fashion", help=MODEL_HELP)
    parser.add_argument("--config", help=CONFIG_HELP)
    parser.add_argument(
        "--split", choices=("test", "train"), default="test",
        help="part whose images are reconstructed and compared with samples",
    )  # fmt: skip
    add_image_arguments(parser, with_check=True)
    parser.add_argument("--samples", type=positive_int, default=1000, help="images to generate")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    add_sampling_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write")
    add_quantization_argument(parser)
    add_device_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Report:
    """Run the command."""
    check_folder(options.out)
    pipeline = BitDancePipeline.from_pretrained(
        options.model, config=options.config, quantization=options.quantization,
        device=options.device,
    )  # fmt: skip
    classes = _match_classes(options.data, pipeline)
    parts = {
        split: open_images(
            options.data, pipeline.config.resolution, split=split, classes=classes,
            background=options.background, on_error=options.on_error,
        )
        for split in sorted({"train", options.split})
    }  # fmt: skip
    evaluation, samples, classifier = evaluate(
        pipeline, parts["train"], parts[options.split], samples=options.samples, seed=options.seed,
        num_inference_steps=options.num_inference_steps, guidance_scale=options.guidance_scale,
        progress=not options.quiet,
    )  # fmt: skip
    evaluation = dataclasses.replace(evaluation, split=options.split)
    write(evaluation, samples, classifier, options.out)
    names = "evaluation.json", "evaluation.md", "evaluation.png", "classifier.safetensors"
    values = dataclasses.asdict(evaluation) | {"files": [options.out / name for name in names]}
    where = f"{options.out}/evaluation.json, .md, .png, classifier.safetensors"
    return Report(values, f"{evaluation.table()}{where}")


def _match_classes(data: Path, pipeline: BitDancePipeline) -> tuple[str, ...]:
    """Names of the model's classes, in its order, where the data have them; otherwise none."""
    names = pipeline.classes if all(pipeline.classes) else ()
    if is_idx(data) or not data.is_dir():
        return names
    folders = class_names(data)
    if set(names) & set(folders):
        return names
    if names and folders:
        print(
            f"bitdance evaluate: {printable(data)} has other class names than the model: "
            f"{folders[0]!r} is taken for {names[0]!r}, and so on in alphabetical order",
            file=sys.stderr,
        )
    return ()
