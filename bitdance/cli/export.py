"""``bitdance export``: a checkpoint as safetensors and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import (
    DTYPES,
    add_model_arguments,
    load_autoencoder,
    load_pipeline,
    load_text_pipeline,
)
from bitdance.cli.report import Report, add_json_argument
from bitdance.integrations.official.export import write_official
from bitdance.io.files import NoModelError
from bitdance.io.outputs import check_folder
from bitdance.models.loading import model_folder
from bitdance.models.loading.hub import locate
from bitdance.models.loading.model_files import Folder
from bitdance.models.loading.release_layout import release_layout

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
    parser.add_argument(
        "--format", choices=("folder", "official"), default="folder",
        help="a folder for --model, or the files that the authors' code loads; the latter also of "
        "an autoencoder alone",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Report:
    """Run the command."""
    check_folder(options.out)
    files = (_export_official if options.format == "official" else _export_folder)(options)
    sizes = {file: file.stat().st_size for file in files}
    if options.format == "official":
        text = "\n".join(f"{size:,} bytes: {file}" for file, size in sizes.items())
    else:
        text = f"{sum(sizes.values()):,} bytes: {options.out}/"
    return Report({"files": [{"file": f, "bytes": n} for f, n in sizes.items()]}, text)


def _export_folder(options: argparse.Namespace) -> list[Path]:
    path = Path(options.model)
    if path.is_dir() and release_layout(Folder(path).names, str(path)) is not None:
        if options.config is not None:
            raise ValueError("--config must be left out for a text-to-image model")
        load_text_pipeline(options).save_pretrained(options.out)
        return sorted(file for file in options.out.rglob("*") if file.is_file())
    model_folder.check_replaceable(options.out)
    load_pipeline(options).save_pretrained(options.out)
    return [options.out / "config.json", model_folder.open_folder(options.out).file]


def _export_official(options: argparse.Namespace) -> list[Path]:
    try:
        model = load_pipeline(options).model
        return write_official(options.out, model.vae, model)
    except NoModelError:
        path = locate(options.model, autoencoder=True)
        dtype = DTYPES[options.dtype]
        return write_official(
            options.out, load_autoencoder(path, config=options.config, dtype=dtype)
        )
