"""``bitdance tokenize``: a data set of images to packed bits."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import DATA_HELP, add_device_argument, add_image_arguments, positive_int
from bitdance.cli.report import Report, add_json_argument
from bitdance.data.buckets import aspect_sizes
from bitdance.data.captioned_images import iterate_captioned_images
from bitdance.data.images import IdxImages, open_images
from bitdance.data.packed_dataset import Variants
from bitdance.data.tokenize import tokenize
from bitdance.data.tokenize_captions import tokenize_captions
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder

__all__ = ["add_command"]

# Arguments of one kind of data, and what they are where they are left out.
_OF_LABELS = {
    "split": "train", "classes": [], "crops": 0, "min_crop": 0.8, "flips": False, "seed": 0
}  # fmt: skip
_OF_CAPTIONS = dict.fromkeys(("sizes", "max_pixels", "max_ratio", "parallel_num"))


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "tokenize",
        help="encode a data set into packed bits",
        description="Encode a data set into checksummed shards of packed bits, which training "
        "reads instead of the images.",
    )
    parser.add_argument(
        "data", type=Path, metavar="DATA",
        help=f"{DATA_HELP}; with --captions a .jsonl, .parquet or .tar file, or a pattern of them",
    )  # fmt: skip
    parser.add_argument(
        "--autoencoder", required=True, help="folder of its training run, file, or hub id"
    )
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--size", type=positive_int, help="pixels a side")
    size.add_argument(
        "--sizes", nargs="+", metavar="HEIGHTxWIDTH",
        help="with --captions: sizes, the nearest of which an image gets, e.g. 512x512 384x640",
    )  # fmt: skip
    size.add_argument(
        "--max-pixels", type=positive_int,
        help="with --captions: pixels of an image, at most, whose sides are in its proportion",
    )  # fmt: skip
    parser.add_argument("--captions", action="store_true", help="encode images with captions")
    parser.add_argument(
        "--parallel-num", type=positive_int, metavar="P",
        help="with --captions: tokens a step of the model to train, a square; sides are made of "
        "whole patches (default: 16)",
    )  # fmt: skip
    parser.add_argument(
        "--max-ratio", type=float,
        help="with --max-pixels: ratio of the longer to the shorter side, at most (default: 2)",
    )  # fmt: skip
    parser.add_argument("--split", choices=("train", "test"), default="train", help="which part")
    parser.add_argument(
        "--classes", nargs="+", default=[],
        help="for IDX files: names of the classes; for image files: the class folders to use, in "
        "this order",
    )  # fmt: skip
    parser.add_argument(
        "--crops", type=int, default=0,
        help="random crops to encode of each image, beside its middle",
    )  # fmt: skip
    parser.add_argument(
        "--min-crop",
        type=float,
        default=0.8,
        help="smallest share of the shorter side that a random crop has",
    )
    parser.add_argument("--flips", action="store_true", help="encode each mirrored, too")
    parser.add_argument("--seed", type=int, default=0, help="seed of the crops")
    add_image_arguments(parser, with_check=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    add_device_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Report:
    """Run the command."""
    _check(options)
    autoencoder = BinaryAutoencoder.from_pretrained(options.autoencoder, device=options.device)
    return (_run_captions if options.captions else _run_labels)(options, autoencoder)


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError where an argument has no effect."""
    when, unused = "without --captions", _OF_CAPTIONS
    if options.captions:
        when, unused = "with --captions", _OF_LABELS
        if options.on_error == "check":
            raise ValueError("--on-error must be raise or skip with --captions, got check")
    for name, usual in unused.items():
        if (value := getattr(options, name)) != usual:
            raise ValueError(f"--{name.replace('_', '-')} must be left out {when}, got {value}")
    if options.max_ratio is not None and options.max_pixels is None:
        raise ValueError(
            f"--max-ratio must be left out without --max-pixels, got {options.max_ratio}"
        )


def _sizes(options: argparse.Namespace, downsampling: int) -> list[tuple[int, int]]:
    """Heights and widths to choose from, of whole patches.

    Raises:
        ValueError: an argument is out of range.
    """
    parallel_num = options.parallel_num or 16
    side = math.isqrt(parallel_num)
    if side**2 != parallel_num:
        raise ValueError(f"--parallel-num must be a square number, got {parallel_num}")
    multiple = side * downsampling
    if options.max_pixels is not None:
        if options.max_pixels < multiple**2:
            raise ValueError(
                f"--max-pixels must be at least {multiple**2}, a patch of {multiple} x {multiple}, "
                f"got {options.max_pixels}"
            )
        ratio = 2.0 if options.max_ratio is None else options.max_ratio
        if ratio < 1:
            raise ValueError(f"--max-ratio must be at least 1, got {ratio}")
        return aspect_sizes(options.max_pixels, multiple, ratio)
    names = options.sizes or [f"{options.size}x{options.size}"]
    sizes = []
    for name in names:
        match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", name)
        if match is None:
            raise ValueError(f"--sizes must be HEIGHTxWIDTH, got {name!r}")
        sizes.append((int(match[1]), int(match[2])))
        if any(side % multiple for side in sizes[-1]):
            raise ValueError(
                f"--{'sizes' if options.sizes else 'size'} must be multiples of {multiple}, the "
                f"pixels of a patch of {side} x {side} tokens, got {name}"
            )
    return sizes


def _run_captions(options: argparse.Namespace, autoencoder: BinaryAutoencoder) -> Report:
    images = iterate_captioned_images(options.data)
    sizes = _sizes(options, autoencoder.config.downsampling)
    done = tokenize_captions(
        images, autoencoder, options.out, sizes=sizes, background=options.background,
        on_error=options.on_error, progress=not options.quiet,
    )  # fmt: skip
    found, images_by_size = sum(done.images.values()), sorted(done.images.items())
    values = {
        "images": found, "captions": done.captions, "skipped": done.skipped,
        "bits_per_code": autoencoder.config.z_channels,
        "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in images_by_size],
        "out": options.out,
    }  # fmt: skip
    counts = ", ".join(f"{h} x {w}: {count}" for (h, w), count in images_by_size)
    skipped = f", {done.skipped} skipped" if done.skipped else ""
    text = f"{found} images ({counts}) with {done.captions} captions{skipped}: {options.out}"
    return Report(values, text)


def _run_labels(options: argparse.Namespace, autoencoder: BinaryAutoencoder) -> Report:
    if options.size % autoencoder.config.downsampling:
        raise ValueError(
            f"--size must be a multiple of the autoencoder's {autoencoder.config.downsampling}, "
            f"got {options.size}"
        )
    images = open_images(
        options.data, options.size, split=options.split, classes=options.classes,
        background=options.background, on_error=options.on_error,
    )  # fmt: skip
    variants = Variants(
        crops=options.crops, flips=options.flips, min_crop=options.min_crop if options.crops else 1
    )
    if options.crops and isinstance(images, IdxImages):
        raise ValueError(
            f"--crops must be left out for IDX files, whose images are padded, got {options.crops}"
        )
    metadata = {"classes": list(images.classes), "size": options.size}
    tokens = tokenize(
        images, autoencoder, options.out, metadata=metadata, variants=variants, seed=options.seed,
        progress=not options.quiet,
    )  # fmt: skip
    bits = autoencoder.config.z_channels
    times = f", each {len(variants)} times" if len(variants) > 1 else ""
    values = {
        "images": len(images), "variants": len(variants), "codes_per_image": tokens,
        "bits_per_code": bits, "out": options.out,
    }  # fmt: skip
    text = f"{len(images)} images of {tokens} codes of {bits} bits{times}: {options.out}"
    return Report(values, text)
