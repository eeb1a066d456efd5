"""``bitdance sample``: many images in one file, by any number of processes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import (
    add_decoding_arguments,
    add_model_arguments,
    add_offload_argument,
    add_quantization_argument,
    add_sampling_arguments,
    load_pipeline,
    load_text_pipeline,
    positive_int,
)
from bitdance.cli.errors import world_of
from bitdance.cli.report import Report, add_json_argument
from bitdance.distributed import World
from bitdance.evaluation.prompt_lists import LAYOUTS, read_prompts
from bitdance.evaluation.sample import sample_classes
from bitdance.evaluation.sample_prompts import IMAGES, sample_prompts
from bitdance.io.outputs import check_folder

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "sample",
        help="generate thousands of images into one file",
        description="Generate images of many classes into one .npz file, as evaluation suites take "
        "it, or as packed codes. An interrupted command continues where it was. Several processes "
        "share the work: torchrun --nproc-per-node N -m bitdance.cli sample ...; image i is the "
        "same for every number of processes and every batch size. With --prompts: four images of "
        "each prompt of GenEval or DPG-Bench, by a text-to-image model.",
    )
    add_model_arguments(parser)
    add_quantization_argument(parser)
    add_decoding_arguments(parser)
    add_offload_argument(parser)
    parser.add_argument(
        "--class", dest="classes", nargs="+", default=["all"], metavar="CLASS",
        help="class names or numbers, or 'all' (default: all)",
    )  # fmt: skip
    parser.add_argument("--num-per-class", type=positive_int, default=50, help="images per class")
    parser.add_argument("--seed", type=int, default=0, help="random seed, 0 to 2^64 - 1")
    add_sampling_arguments(parser)
    parser.add_argument(
        "--guidance-schedule", choices=("linear", "constant"), default="linear",
        help="guidance over the autoregressive steps",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", type=Path,
        help="prompts in place of classes: GenEval's .jsonl file, or DPG's folder or .json file",
    )  # fmt: skip
    parser.add_argument("--layout", choices=LAYOUTS, help="whose prompts and folders they are")
    parser.add_argument("--height", type=positive_int, default=1024, help="pixels, for prompts")
    parser.add_argument("--width", type=positive_int, default=1024, help="pixels, for prompts")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images per batch")
    parser.add_argument(
        "--format", choices=("npz", "packed"), default="npz",
        help="samples.npz with uint8 images (arr_0) and labels (arr_1), or a data set of packed "
        "codes, which `bitdance metrics` reads",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to continue")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Report | None:
    """Run the command; returns None in all processes but the first."""
    check_folder(options.out)
    if (options.prompts is None) != (options.layout is None):
        raise ValueError("--prompts and --layout must be given together, got one of them")
    with world_of(options.device) as world:
        options.device = str(world.device)
        if options.prompts is not None:
            return _run_prompts(options, world)
        pipeline = load_pipeline(options)
        classes = options.classes
        if classes == ["all"]:
            classes = range(pipeline.config.num_classes)
        labels = [pipeline.label(name) for name in classes for _ in range(options.num_per_class)]
        result = sample_classes(
            pipeline,
            labels,
            options.out,
            content=options.format,
            seed=options.seed,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            guidance_schedule=options.guidance_schedule,
            batch_size=options.batch_size,
            world=world,
            progress=not options.quiet,
        )
        if not world.is_main:
            return None
        values = {
            "images": len(labels), "generated": result.generated, "seed": options.seed,
            "out": result.path,
        }  # fmt: skip
        before = len(labels) - result.generated
        there = f", {before} of them there before" if before else ""
        return Report(values, f"{len(labels)} images, seed {options.seed}{there}: {result.path}")


def _run_prompts(options: argparse.Namespace, world: World) -> Report | None:
    prompts = read_prompts(options.prompts, options.layout)
    pipeline = load_text_pipeline(options)
    given = {
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": options.guidance_scale,
    }
    generated = sample_prompts(
        pipeline, prompts, options.out, layout=options.layout, seed=options.seed,
        height=options.height, width=options.width, batch_size=options.batch_size, world=world,
        progress=not options.quiet, **{k: v for k, v in given.items() if v is not None},
    )  # fmt: skip
    if not world.is_main:
        return None
    values = {
        "images": IMAGES * len(prompts), "generated": IMAGES * generated, "seed": options.seed,
        "out": options.out,
    }  # fmt: skip
    before = len(prompts) - generated
    there = f", those of {before} prompts there before" if before else ""
    text = f"{IMAGES} images of {len(prompts)} prompts, seed {options.seed}{there}: {options.out}"
    return Report(values, text)
