"""``bitdance generate``: images of classes."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import (
    add_model_arguments,
    add_quantization_argument,
    add_sampling_arguments,
    load_pipeline,
    positive_int,
)
from bitdance.io.image_files import printable
from bitdance.io.image_grid import grid, grid_size
from bitdance.io.outputs import (
    IMAGE_SUFFIXES,
    check_file,
    check_folder,
    image_fits,
    save_array,
    save_image,
)

__all__ = ["add_command"]

_MAX_IMAGES = 10_000_000


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "generate",
        help="generate images of classes",
        description="Generate images of one or more classes. Image i of a seed is the same in any "
        "batch.",
    )
    add_model_arguments(parser)
    add_quantization_argument(parser)
    parser.add_argument(
        "--class", dest="classes", nargs="+", required=True, metavar="CLASS",
        help="class names or numbers, or 'all'",
    )  # fmt: skip
    parser.add_argument("--num-images", type=positive_int, default=1, help="images per class")
    parser.add_argument("--seed", type=int, default=0, help="random seed, 0 to 2^64 - 1")
    add_sampling_arguments(parser)
    parser.add_argument(
        "--guidance-schedule", choices=("linear", "constant"), default="linear",
        help="guidance over the autoregressive steps",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=positive_int, default=8, help="images per batch")
    parser.add_argument(
        "--out", type=Path, default=Path("out.png"),
        help="an image file for a grid with a row per class, or a folder for single images",
    )  # fmt: skip
    parser.add_argument("--zoom", type=positive_int, default=1, help="enlarge the pixels of a grid")
    parser.add_argument(
        "--bits", type=Path, help="also write the packed bits: .npy, uint8 [n, tokens, C / 8]"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    as_grid = options.out.suffix.lower() in IMAGE_SUFFIXES
    (check_file if as_grid else check_folder)(options.out)
    if options.bits is not None:
        check_file(options.bits)
        if options.bits.resolve() == options.out.resolve():
            raise ValueError(f"--bits must be another file than --out, got {options.bits}")
    pipeline = load_pipeline(options)
    pipeline.set_progress_bar_config(disable=options.quiet)
    classes = options.classes
    if classes == ["all"]:
        classes = range(pipeline.config.num_classes)
    count = len(classes) * options.num_images
    if count > _MAX_IMAGES:
        raise ValueError(f"--num-images must give at most {_MAX_IMAGES} images, got {count}")
    columns = options.num_images
    if len(classes) == 1:
        columns = math.ceil(math.sqrt(options.num_images))
    if as_grid:  # checked before the work
        width, height = grid_size(count, columns, pipeline.config.resolution * options.zoom)
        if not image_fits(options.out, width, height):
            raise ValueError(
                f"--out {printable(options.out)} would have {width} x {height} pixels; give a "
                "folder, or lower --num-images or --zoom"
            )
    labels = [pipeline.label(name) for name in classes for _ in range(options.num_images)]
    packed = pipeline(
        labels,
        seed=options.seed,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        guidance_schedule=options.guidance_schedule,
        batch_size=options.batch_size,
        output_type="latent",
    ).images
    if options.bits is not None:
        save_array(packed.cpu().numpy(), options.bits)
    images = pipeline.decode(packed, seed=options.seed, batch_size=options.batch_size)
    if as_grid:
        save_image(grid(images, columns, options.zoom), options.out)
    else:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            save_image(image, options.out / f"{i:05d}-class{label}.png")
    print(f"{len(images)} images, seed {options.seed}: {options.out}{'' if as_grid else '/'}")
