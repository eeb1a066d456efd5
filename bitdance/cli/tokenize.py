"""``bitdance tokenize``: a data set of images to packed bits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import DATA_HELP, add_device_argument, add_image_arguments, positive_int
from bitdance.data.images import IdxImages, open_images
from bitdance.data.packed_dataset import Variants
from bitdance.data.tokenize import tokenize
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "tokenize",
        help="encode a data set into packed bits",
        description="Encode a data set into checksummed shards of packed bits, which training "
        "reads instead of the images.",
    )
    parser.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--autoencoder", required=True, help="folder of its training run, file, or hub id"
    )
    parser.add_argument("--size", type=positive_int, required=True, help="pixels a side")
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
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    autoencoder = BinaryAutoencoder.from_pretrained(options.autoencoder, device=options.device)
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
    print(f"{len(images)} images of {tokens} codes of {bits} bits{times}: {options.out}")
