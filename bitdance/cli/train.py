"""``bitdance train``: an autoencoder, or a model on its codes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import add_device_argument, positive_int
from bitdance.cli.errors import world_of
from bitdance.cli.report import Report, add_json_argument
from bitdance.distributed import World
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.class_conditional import ClassConditionalTask
from bitdance.training.config import (
    AutoencoderRun,
    ClassConditionalRun,
    RunConfig,
    TextToImageRun,
    read_config,
)
from bitdance.training.task import Task
from bitdance.training.text_to_image import TextToImageTask
from bitdance.training.trainer import Trainer

__all__ = ["add_command"]

_KINDS = {
    "autoencoder": "the autoencoder that turns images into bits",
    "model": "the transformer and its diffusion head, on the codes of a trained autoencoder",
    "text-to-image": "a language model and its diffusion head, on codes with captions",
}


def add_command(commands: Any) -> None:
    """Add the command's parsers."""
    train = commands.add_parser(
        "train",
        help="train an autoencoder or a model",
        description="Train an autoencoder, or a model on its codes. A run that was stopped resumes "
        "when the same command is given again.",
    )
    kinds = train.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, text in _KINDS.items():
        parser = kinds.add_parser(kind, help=text, description=f"Train {text}.")
        parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file")
        parser.add_argument("--out", type=Path, required=True, help="folder of the run")
        parser.add_argument("--data", help="replaces data.path of the file")
        if kind != "autoencoder":
            parser.add_argument("--autoencoder", help="replaces autoencoder_path of the file")
        parser.add_argument(
            "--set", dest="changes", nargs="+", action="extend", default=[],
            metavar="SECTION.KEY=VALUE",
            help="change values of the file, e.g. optim.batch_size=32",
        )  # fmt: skip
        parser.add_argument("--init", help="checkpoint with the initial weights")
        parser.add_argument("--stop-at", type=positive_int, help="stop after this step, resumable")
        add_device_argument(parser)
        parser.add_argument("--quiet", action="store_true", help="no progress bar")
        add_json_argument(parser)
        parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Report | int:
    """Run the command; returns a report in the first process, and the exit status in others."""
    with world_of(options.device) as world:
        return _run(options, world)


def _run(options: argparse.Namespace, world: World) -> Report | int:
    given = {
        "data.path": options.data,
        "init": options.init,
        "autoencoder_path": options.autoencoder if options.kind != "autoencoder" else None,
    }
    values = {name: value for name, value in given.items() if value is not None}
    with world.together():
        config = read_config(options.config, options.changes, values)
        task = _task(options, config, world)
    trainer = Trainer(
        task, config, options.out, device=world.device, world=world, progress=not options.quiet
    )  # fmt: skip
    if trainer.step and not options.quiet and world.is_main:
        print(f"resuming {options.out} after step {trainer.step}", file=sys.stderr)
    stopped = trainer.run(options.stop_at)
    status = 128 + stopped if stopped else 0
    if not world.is_main:
        return status
    values = {
        "step": trainer.step, "steps": config.optim.steps, "signal": stopped or None,
        "out": options.out,
    }  # fmt: skip
    text = f"step {trainer.step} of {config.optim.steps}: {options.out}"
    if stopped:
        print(f"stopped after step {trainer.step}: {options.out}", file=sys.stderr)
        text = ""
    return Report(values, text, status)


def _task(options: argparse.Namespace, config: RunConfig, world: World) -> Task:
    if options.kind == "model" and isinstance(config, ClassConditionalRun):
        return ClassConditionalTask(config, device=world.device)
    if options.kind == "autoencoder" and isinstance(config, AutoencoderRun):
        return AutoencoderTask(config, device=world.device)
    if options.kind == "text-to-image" and isinstance(config, TextToImageRun):
        return TextToImageTask(config, device=world.device)
    section = options.kind.replace("-", "_")
    raise ValueError(f"{options.config} has no section [{section}]")
