"""``bitdance info``: what a checkpoint contains."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from torch import nn

from bitdance.cli.arguments import AUTOENCODER_HELP, CONFIG_HELP, load_autoencoder, load_pipeline
from bitdance.cli.memory import add_memory_arguments, describe_memory, read_text_to_image_config
from bitdance.cli.report import Report, add_json_argument
from bitdance.io import files
from bitdance.io.files import NoModelError
from bitdance.io.image_files import printable
from bitdance.models.loading.hub import locate
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.pipelines.class_conditional_files import digest
from bitdance.pipelines.text_to_image_files import SamplingConfig

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "info",
        help="show what a checkpoint contains",
        description="Configuration, parameters and bits per image of a checkpoint, and the memory "
        "that generating needs. Without one: the environment.",
    )
    parser.add_argument("model", nargs="?", help="folder, file or hub id")
    parser.add_argument("--autoencoder", help=AUTOENCODER_HELP)
    parser.add_argument("--config", help=CONFIG_HELP)
    parser.add_argument(
        "--tokenizer", help="folder or hub id of a text tokenizer (default: the model's own)"
    )
    add_memory_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Report:
    """Run the command."""
    if options.model is None:
        from bitdance_kernels import env_report

        environment = env_report.collect()
        return Report(environment, env_report.text(environment))
    title = printable(options.model)
    found = read_text_to_image_config(options)
    if found is not None:
        report, lines = _describe_text_to_image(options, *found)
        title = f"{title}: a text-to-image model"
    else:
        path = locate(options.model, autoencoder=True)
        try:
            report, lines = _describe_model(options, path)
        except NoModelError:
            report, lines = _describe_autoencoder(path, options.config)
            title = f"{title}: an autoencoder"
    return Report(report, "\n".join([title, *(f"  {name:<16} {value}" for name, value in lines)]))


def _describe_model(
    options: argparse.Namespace, path: Path
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    pipeline = load_pipeline(options, path)
    model, config = pipeline.model, pipeline.config
    counts = {name: _count_parameters(module) for name, module in model.named_children()}
    counts = {"all": _count_parameters(model), **{name: n for name, n in counts.items() if n}}
    report = {
        "model": config.to_dict(),
        "parameters": counts,
        "ar_steps": config.ar_steps,
        "tokens_per_image": config.tokens,
        "bits_per_image": config.tokens * config.token_bits,
        "sha256": digest(path),
    }
    memory, memory_lines = describe_memory(options, config)
    report |= memory
    lines = [
        ("parameters", f"{counts['all']:,}"),
        *((f"  {name}", f"{count:,}") for name, count in counts.items() if name != "all"),
        ("one image", f"{config.tokens} tokens of {config.token_bits} bits"),
        ("", f"= {config.tokens * config.token_bits // 8:,} bytes packed"),
        ("AR steps", f"{config.ar_steps}, {config.tokens // config.ar_steps} tokens a step"),
        ("classes", f"{config.num_classes}"),
        ("SHA-256", f"{report['sha256']}"),
        *memory_lines,
    ]
    return report, lines


def _describe_text_to_image(
    options: argparse.Namespace, config: TextToImageConfig, sampling: SamplingConfig
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What the configuration says; no weights are read or downloaded."""
    ae = config.autoencoder
    side = ae.downsampling * math.isqrt(config.parallel_num)
    report = {
        "llm": config.llm.to_dict(), "head": dataclasses.asdict(config.head),
        "autoencoder": ae.to_dict(), "parallel_num": config.parallel_num,
    }  # fmt: skip
    memory, memory_lines = describe_memory(options, config, sampling)
    lines = [
        ("language model", f"{config.llm.num_hidden_layers} x {config.llm.hidden_size}"),
        ("head", f"{config.head.depth_latent} x {config.head.ch_latent}"),
        ("one code", f"{ae.z_channels} bits for {ae.downsampling} x {ae.downsampling} pixels"),
        ("AR step", f"{config.parallel_num} tokens, {side} x {side} pixels"),
        *memory_lines,
    ]
    return {**report, **memory}, lines


def _describe_autoencoder(
    path: Path, config: str | None
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    autoencoder = load_autoencoder(path, config=config)
    shape, count = autoencoder.config, _count_parameters(autoencoder)
    digest = files.sha256(path) if path.is_file() else None
    report = {"autoencoder": shape.to_dict(), "parameters": {"all": count}, "sha256": digest}
    side = shape.downsampling
    lines = [
        ("parameters", f"{count:,}"),
        ("one code", f"{shape.z_channels} bits for {side} x {side} pixels"),
    ]
    return report, [*lines, ("SHA-256", digest)] if digest else lines


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
