"""``bitdance tokenize``: a data set of images to packed bits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import add_device_argument, add_image_arguments, positive_int
from bitdance.data.images import open_images
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
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of images or IDX files")
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
    metadata = {"classes": list(images.classes), "size": options.size}
    tokens = tokenize(
        images, autoencoder, options.out, metadata=metadata, progress=not options.quiet
    )
    bits = autoencoder.config.z_channels
    print(f"{len(images)} images of {tokens} codes of {bits} bits: {options.out}")
