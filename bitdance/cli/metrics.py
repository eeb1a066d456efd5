"""``bitdance metrics``: how far samples are from real images."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import (
    CONFIG_HELP,
    MODEL_HELP,
    add_device_argument,
    load_pipeline,
    positive_int,
)
from bitdance.cli.errors import world_of
from bitdance.cli.report import Report, add_json_argument
from bitdance.evaluation.compare import compare, write_metrics
from bitdance.evaluation.features import load_extractor
from bitdance.evaluation.image_sources import ImageSource, open_source, read_statistics
from bitdance.io.npz import has_images
from bitdance.io.outputs import check_folder
from bitdance.pipelines.class_conditional import BitDancePipeline

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "metrics",
        help="compare samples with real images",
        description="Fréchet distance (FID), kernel distance (KID), precision and recall against "
        "real images, and inception score. Images are .npz files (arr_0), folders of image or IDX "
        "files, or what `bitdance sample` wrote. Several processes share the work: torchrun "
        "--nproc-per-node N -m bitdance.cli metrics ...",
    )
    parser.add_argument("samples", type=Path, metavar="SAMPLES", help="images to measure")
    parser.add_argument(
        "--reference", type=Path, required=True,
        help="real images, or an .npz file with mu and sigma of their features",
    )  # fmt: skip
    parser.add_argument(
        "--features", default="inception",
        help="network: inception, classifier (of `bitdance evaluate`), or module:function",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, help="file of its weights; nothing is downloaded")
    parser.add_argument(
        "--size", type=positive_int,
        help="pixels a side that image files are brought to (default: those of the samples)",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("train", "test"), default="train",
        help="part of a reference folder that has several",
    )  # fmt: skip
    parser.add_argument("--model", help=f"decodes packed samples: {MODEL_HELP}")
    parser.add_argument("--config", help=CONFIG_HELP)
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images per batch")
    parser.add_argument("--out", type=Path, help="folder for metrics.json and metrics.md")
    add_device_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_json_argument(parser)
    parser.set_defaults(run=run, autoencoder=None)


def run(options: argparse.Namespace) -> Report | None:
    """Run the command; returns None in all processes but the first."""
    if options.out is not None:
        check_folder(options.out)
    with world_of(options.device) as world:
        options.device = str(world.device)

        def model() -> BitDancePipeline:
            if options.model is None:
                raise ValueError("--model must be given to decode packed samples, got none")
            return load_pipeline(options)

        samples = open_source(options.samples, size=options.size, pipeline=model)
        statistics = read_statistics(options.reference)
        reference: ImageSource | None = None
        if statistics is None or has_images(options.reference):
            size = samples.size[0] if options.size is None else options.size
            reference = open_source(
                options.reference, size=size, split=options.split, pipeline=model
            )
        extractor = load_extractor(options.features, options.weights, world.device)
        metrics = compare(
            samples, reference, extractor, name=options.features, statistics=statistics,
            batch_size=options.batch_size, device=world.device, world=world,
            progress=not options.quiet,
        )  # fmt: skip
        if not world.is_main:
            return None
        files, text = [], metrics.table().rstrip("\n")
        if options.out is not None:
            write_metrics(metrics, options.out)
            files = [options.out / "metrics.json", options.out / "metrics.md"]
            text += f"\n{options.out}/metrics.json, .md"
        return Report(dataclasses.asdict(metrics) | {"files": files}, text)
