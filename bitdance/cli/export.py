"""``bitdance export``: a checkpoint as safetensors and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import add_model_arguments, load_pipeline
from bitdance.io.outputs import check_folder
from bitdance.models.loading import model_folder

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "export",
        help="write a checkpoint as safetensors and JSON",
        description="Write a model with its autoencoder into a folder that --model accepts: an "
        "official checkpoint without its pickle, or a trained model in half precision.",
    )
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    check_folder(options.out)
    model_folder.check_replaceable(options.out)
    pipeline = load_pipeline(options)
    pipeline.save_pretrained(options.out)
    size = model_folder.open_folder(options.out).file.stat().st_size
    print(f"{size:,} bytes: {options.out}/")
