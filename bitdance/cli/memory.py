"""The memory that a model needs, for ``bitdance info``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import (
    DTYPES,
    TILE_SIZE,
    add_decoding_arguments,
    add_quantization_argument,
    check_decoding,
    positive_int,
)
from bitdance.models.config import ModelConfig
from bitdance.models.loading.bundled import BUNDLED_TEXT
from bitdance.models.loading.model_files import open_files
from bitdance.models.loading.release_layout import release_layout
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.pipelines.memory import CARDS, MemoryEstimate, estimate_memory
from bitdance.pipelines.prompts import count_queries, load_tokenizer
from bitdance.pipelines.release import Release, locate_tokenizer
from bitdance.pipelines.text_to_image_files import SamplingConfig

__all__ = ["add_memory_arguments", "describe_memory", "read_text_to_image_config"]


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the memory depends on."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="dtype of the parameters, for the memory",
    )
    add_quantization_argument(parser)
    add_decoding_arguments(parser)
    parser.add_argument("--batch-size", type=positive_int, default=1, help="images at a time")
    parser.add_argument(
        "--num-inference-steps", type=positive_int, default=50, help="denoising steps per patch"
    )
    for side in ("height", "width"):
        parser.add_argument(
            f"--{side}", type=positive_int,
            help="pixels of images of a text-to-image model (default: its own)",
        )  # fmt: skip


def read_text_to_image_config(
    options: argparse.Namespace,
) -> tuple[TextToImageConfig, SamplingConfig] | None:
    """The configurations of a text-to-image model; None if the model is another.

    Of a repository only small files are downloaded.

    Raises:
        CheckpointError: files are damaged.
        FileNotFoundError: there is no such model.
    """
    path = Path(options.model)
    known = path.is_dir() or options.model == BUNDLED_TEXT
    if not known and (path.exists() or len(path.parts) != 2):
        return None  # a file here or in a repository
    files = open_files(options.model)
    if release_layout(files.names, files.source) is None:
        return None
    release = Release(files)

    def queries() -> int:
        source = options.tokenizer
        folder = release.tokenizer_folder if source is None else locate_tokenizer(source)
        return count_queries(load_tokenizer(folder))

    return release.config(queries), release.sampling


def describe_memory(
    options: argparse.Namespace,
    config: TextToImageConfig | ModelConfig,
    sampling: SamplingConfig | None = None,
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The memory for what the options say, as a report and as lines.

    Args:
        options: arguments of the command.
        config: configuration of the model.
        sampling: of a text-to-image model, whose size counts where the options have none.

    Raises:
        ValueError: the options contradict each other or the model.
    """
    check_decoding(options)
    size: dict[str, Any] = {} if sampling is None else {
        "height": options.height or sampling.height, "width": options.width or sampling.width
    }  # fmt: skip
    estimate = estimate_memory(
        config,
        dtype=DTYPES[options.dtype],
        quantization=options.quantization,
        batch_size=options.batch_size,
        **size,
        num_inference_steps=options.num_inference_steps,
        tile_size=(options.tile_size or TILE_SIZE) if options.tiling else None,
        slicing=options.slicing,
    )
    return {"memory": estimate.to_dict()}, _lines(options, estimate)


def _lines(options: argparse.Namespace, estimate: MemoryEstimate) -> list[tuple[str, str]]:
    kind = options.dtype if options.quantization is None else options.quantization
    named = {
        **estimate.weights, "cache": estimate.cache, "buffers": estimate.buffers,
        "sampling": estimate.sampling, "decoding": estimate.decoding,
    }  # fmt: skip
    ways = {"resident": "fits", "offloaded": "fits with model offload", None: "does not fit"}
    return [
        ("memory", f"{_text(estimate.resident)}: {kind}, batch of {options.batch_size}"),
        *((f"  {name}", _text(size)) for name, size in named.items()),
        ("  with offload", _text(estimate.offloaded)),
        ("  on a CPU", _text(estimate.on_cpu)),
        *((f"  card of {gib} GiB", ways[estimate.fits(gib)]) for gib in CARDS),
    ]


def _text(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"
