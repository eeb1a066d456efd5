"""``bitdance reconstruct``: images through the autoencoder and back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from bitdance.cli.arguments import (
    DTYPES,
    add_decoding_arguments,
    add_image_arguments,
    add_model_arguments,
    check_decoding,
    configure_decoding,
    load_autoencoder,
    load_pipeline,
    positive_int,
)
from bitdance.cli.report import Report, add_json_argument
from bitdance.data.image_folders import find_images
from bitdance.evaluation.reconstruction import reconstruct_image
from bitdance.io.files import NoModelError
from bitdance.io.image_files import ImageError, crop_center, printable, read_image, resize_shorter
from bitdance.io.image_grid import grid
from bitdance.io.outputs import check_folder, output_paths, save_image
from bitdance.models.loading.hub import locate
from bitdance.pipelines.class_conditional import BitDancePipeline

__all__ = ["add_command"]

_POOR_DB = 15.0  # an error of 45 of 255 levels

Size = tuple[int, int]


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "reconstruct",
        help="send images through the autoencoder",
        description="Encode images to bits and decode them again; each original and its "
        "reconstruction are written side by side.",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them"
    )
    parser.add_argument("--size", type=positive_int, help="resize the shorter side to this")
    add_image_arguments(parser, with_check=False)
    add_decoding_arguments(parser, slicing=False)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Report:
    """Run the command."""
    check_folder(options.out)
    check_decoding(options)
    sizes, skipped = _read_sizes(options)
    pipeline: BitDancePipeline | None = None
    try:
        pipeline = load_pipeline(options)
        autoencoder = pipeline.model.vae
    except NoModelError:
        autoencoder = load_autoencoder(
            locate(options.model, autoencoder=True), config=options.config,
            dtype=DTYPES[options.dtype], device=options.device,
        )  # fmt: skip
        configure_decoding(options, autoencoder)
    factor = autoencoder.config.downsampling
    for path, size in sizes.items():
        if min(size) < factor:
            raise ValueError(f"{printable(path)} is smaller than {factor} pixels; use --size")
    if pipeline is not None:
        _warn_about_sizes(sizes, pipeline)
    done = []
    for path, target in output_paths(list(sizes), options.out, "-reconstructed.png").items():
        image = _read(path, options)
        width, height = image.size
        original = crop_center(image, width // factor * factor, height // factor * factor)
        result = reconstruct_image(autoencoder, original)
        save_image(grid([original, result.image], 2), target)
        done.append(
            {"image": path, "out": target, "bytes": result.num_bytes, "psnr_db": result.psnr_db}
        )
        print(
            f"{printable(path)}: {result.num_bytes} bytes of bits, {result.psnr_db:.2f} dB: "
            f"{printable(target)}"
        )
        if result.psnr_db < _POOR_DB:
            purpose = "" if pipeline is None else f"; the model is made for {_purpose(pipeline)}"
            _warn(f"{printable(path)} is reconstructed poorly{purpose}")
    return Report({"images": done, "skipped": skipped}, "")


def _read_sizes(options: argparse.Namespace) -> tuple[dict[Path, Size], int]:
    """Width and height of each image, and the number of those that cannot be read.

    All are read once before anything is written.
    """
    paths: list[Path] = []
    errors: list[ImageError] = []
    for path in options.images:
        if not path.is_dir():
            paths.append(path)
            continue
        found = find_images(path)
        paths += found.files
        errors += found.refused
        found.refused = []
        if found.describe_skipped():
            _warn(f"{printable(path)}: skipped: {found.describe_skipped()}")
    sizes = {}
    for path in paths:
        try:
            sizes[path] = _read(path, options).size
        except ImageError as error:
            errors.append(error)
            if options.on_error == "raise":
                break
    if errors and options.on_error == "raise":
        raise errors[0]
    for reason in errors:
        _warn(f"skipped: {reason}")
    if not sizes:
        raise ValueError(f"{', '.join(map(printable, options.images))}: there are no images")
    return sizes, len(errors)


def _read(path: Path, options: argparse.Namespace) -> Image.Image:
    image = read_image(path, background=options.background)
    if options.size is None:
        return image
    try:
        return resize_shorter(image, options.size, Image.Resampling.BICUBIC)
    except ValueError as error:
        raise ImageError(f"{printable(path)}: {error}") from error


def _warn_about_sizes(sizes: dict[Path, Size], pipeline: BitDancePipeline) -> None:
    side = pipeline.config.resolution
    others = [path for path, size in sizes.items() if min(size) != side]
    if others:
        width, height = sizes[others[0]]
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        _warn(
            f"{printable(others[0])} has {width} x {height} pixels{more}, but the model is made "
            f"for {_purpose(pipeline)}; --size {side} resizes"
        )


def _purpose(pipeline: BitDancePipeline) -> str:
    side, names = pipeline.config.resolution, [name for name in pipeline.classes if name]
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{side} x {side} pixels" + (f" of {listed}" if names else "")


def _warn(text: str) -> None:
    print(f"bitdance reconstruct: {text}", file=sys.stderr)
