"""``bitdance generate``: images of classes, or of prompts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

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
from bitdance.cli.report import Report, add_json_argument
from bitdance.io.files import require_file
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
from bitdance.models.loading.bundled import BUNDLED, BUNDLED_TEXT

__all__ = ["add_command"]

_MAX_IMAGES = 10_000_000


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "generate",
        help="generate images of classes or prompts",
        description="Generate images of one or more classes, or prompts. Image i of a seed is the "
        "same in any batch.",
    )
    add_model_arguments(parser)
    parser.set_defaults(model=None)
    add_quantization_argument(parser)
    add_decoding_arguments(parser)
    add_offload_argument(parser)
    subjects = parser.add_mutually_exclusive_group(required=True)
    subjects.add_argument(
        "--class", dest="classes", nargs="+", metavar="CLASS",
        help="class names or numbers, or 'all'",
    )  # fmt: skip
    subjects.add_argument("--prompt", nargs="+", help="texts, for a text-to-image model")
    subjects.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a file with a prompt on each line"
    )
    parser.add_argument(
        "--negative-prompt", help="with prompts: text that guidance leads away from"
    )
    parser.add_argument(
        "--tokenizer",
        help="with prompts: folder or hub id of a text tokenizer (default: the model's own)",
    )
    for side in ("height", "width"):
        parser.add_argument(
            f"--{side}", type=positive_int, help="with prompts: pixels (default: the model's own)"
        )
    parser.add_argument(
        "--num-images", type=positive_int, default=1, help="images per class or prompt"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed, 0 to 2^64 - 1")
    add_sampling_arguments(parser)
    parser.add_argument(
        "--guidance-schedule", choices=("linear", "constant"),
        help="with classes: guidance over the autoregressive steps (default: linear)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=positive_int, default=8, help="images per batch")
    parser.add_argument(
        "--out", type=Path, default=Path("out.png"),
        help="an image file for a grid with a row per class or prompt, or a folder for single "
        "images",
    )  # fmt: skip
    parser.add_argument("--zoom", type=positive_int, default=1, help="enlarge the pixels of a grid")
    parser.add_argument(
        "--columns", type=positive_int,
        help="images in a row of a grid (default: those of a class or prompt)",
    )  # fmt: skip
    parser.add_argument(
        "--bits", type=Path, help="also write the packed bits: .npy, uint8 [n, tokens, C / 8]"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Report:
    """Run the command."""
    options.model = options.model or (BUNDLED if options.classes else BUNDLED_TEXT)
    as_grid = options.out.suffix.lower() in IMAGE_SUFFIXES
    (check_file if as_grid else check_folder)(options.out)
    if options.bits is not None:
        check_file(options.bits)
        if options.bits.resolve() == options.out.resolve():
            raise ValueError(f"--bits must be another file than --out, got {options.bits}")
    make = _of_classes if options.classes else _of_prompts
    images, names = make(options, as_grid)
    files = [options.out]
    if as_grid:
        save_image(grid(images, _columns(options, len(images)), options.zoom), options.out)
    else:
        files = [options.out / f"{i:05d}{name}.png" for i, name in enumerate(names)]
        for image, file in zip(images, files, strict=True):
            save_image(image, file)
    values = {
        "images": len(images), "seed": options.seed, "files": files, "bits": options.bits
    }  # fmt: skip
    where = f"{options.out}{'' if as_grid else '/'}"
    return Report(values, f"{len(images)} images, seed {options.seed}: {where}")


def _of_classes(options: argparse.Namespace, as_grid: bool) -> tuple[list[Image], list[str]]:
    """Images of classes, and ends of the names of their files."""
    _refuse(options, ("negative_prompt", "tokenizer", "height", "width"), "--class")
    pipeline = load_pipeline(options)
    pipeline.set_progress_bar_config(disable=options.quiet)
    classes = options.classes
    if classes == ["all"]:
        classes = range(pipeline.config.num_classes)
    side = pipeline.config.resolution
    _check_size(options, len(classes) * options.num_images, side, side, as_grid)
    labels = [pipeline.label(name) for name in classes for _ in range(options.num_images)]
    packed = pipeline(
        labels,
        seed=options.seed,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        guidance_schedule=options.guidance_schedule or "linear",
        batch_size=options.batch_size,
        output_type="latent",
    ).images
    _save_bits(options, packed)
    images = pipeline.decode(packed, seed=options.seed, batch_size=options.batch_size)
    return images, [f"-class{label}" for label in labels]


def _of_prompts(options: argparse.Namespace, as_grid: bool) -> tuple[list[Image], list[str]]:
    """Images of prompts, and ends of the names of their files."""
    _refuse(options, ("config", "guidance_schedule"), "--prompt")
    if options.model == BUNDLED:
        raise ValueError(f"--model must be a text-to-image model, got {options.model}")
    prompts = options.prompt or _read_prompts(options.prompts)
    pipeline = load_text_pipeline(options)
    pipeline.set_progress_bar_config(disable=options.quiet)
    height = options.height or pipeline.sampling.height
    width = options.width or pipeline.sampling.width
    _check_size(options, len(prompts) * options.num_images, height, width, as_grid)
    packed = pipeline(
        prompts,
        negative_prompt=options.negative_prompt,
        num_images_per_prompt=options.num_images,
        seed=options.seed,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        batch_size=options.batch_size,
        output_type="latent",
        height=height,
        width=width,
    ).images
    _save_bits(options, packed)
    images = pipeline.decode(
        packed, height=height, width=width, seed=options.seed, batch_size=options.batch_size
    )
    return images, [""] * len(images)


def _read_prompts(path: Path) -> list[str]:
    """Lines of a file that are not empty.

    Raises:
        ValueError: it has none, or is not UTF-8.
    """
    try:
        text = require_file(path).read_text(encoding="utf-8")
        lines = [line.strip() for line in text.splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {printable(path)} must be UTF-8: {error}") from error
    if not any(lines):
        raise ValueError(f"--prompts {printable(path)} must have a prompt on a line, got none")
    return [line for line in lines if line]


def _refuse(options: argparse.Namespace, names: Sequence[str], subject: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            argument = name.replace("_", "-")
            raise ValueError(f"--{argument} must be left out with {subject}")


def _columns(options: argparse.Namespace, count: int) -> int:
    """Images in a row of the grid: by default those of a class or prompt."""
    if options.columns is not None:
        return min(count, int(options.columns))
    alone = count == options.num_images
    return math.ceil(math.sqrt(count)) if alone else int(options.num_images)


def _check_size(
    options: argparse.Namespace, count: int, height: int, width: int, as_grid: bool
) -> None:
    """Check before the work that there are not too many images for the output."""
    if count > _MAX_IMAGES:
        raise ValueError(f"--num-images must give at most {_MAX_IMAGES} images, got {count}")
    if not as_grid:
        return
    sides = (width * options.zoom, height * options.zoom)
    whole = grid_size(count, _columns(options, count), *sides)
    if not image_fits(options.out, *whole):
        raise ValueError(
            f"--out {printable(options.out)} would have {whole[0]} x {whole[1]} pixels; give a "
            "folder, or lower --num-images or --zoom"
        )


def _save_bits(options: argparse.Namespace, packed: torch.Tensor) -> None:
    if options.bits is not None:
        save_array(packed.cpu().numpy(), options.bits)
