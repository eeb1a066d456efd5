"""``bitdance train``: an autoencoder, or a model on its codes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bitdance.cli.arguments import add_device_argument, positive_int
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.class_conditional import ClassConditionalTask
from bitdance.training.config import AutoencoderRun, ClassConditionalRun, read_config
from bitdance.training.run_folder import check_single_process
from bitdance.training.task import Task
from bitdance.training.trainer import Trainer

__all__ = ["add_command"]

_KINDS = {
    "autoencoder": "the autoencoder that turns images into bits",
    "model": "the transformer and its diffusion head, on the codes of a trained autoencoder",
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
        if kind == "model":
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
        parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    check_single_process()
    given = {
        "data.path": options.data,
        "init": options.init,
        "autoencoder_path": options.autoencoder if options.kind == "model" else None,
    }
    values = {name: value for name, value in given.items() if value is not None}
    config = read_config(options.config, options.changes, values)
    task: Task
    if options.kind == "model" and isinstance(config, ClassConditionalRun):
        task = ClassConditionalTask(config, device=options.device)
    elif options.kind == "autoencoder" and isinstance(config, AutoencoderRun):
        task = AutoencoderTask(config, device=options.device)
    else:
        raise ValueError(f"{options.config} has no section [{options.kind}]")
    trainer = Trainer(
        task, config, options.out, device=options.device, progress=not options.quiet
    )  # fmt: skip
    if trainer.step and not options.quiet:
        print(f"resuming {options.out} after step {trainer.step}", file=sys.stderr)
    stopped = trainer.run(options.stop_at)
    if stopped:
        print(f"stopped after step {trainer.step}: {options.out}", file=sys.stderr)
        return 128 + stopped
    print(f"step {trainer.step} of {config.optim.steps}: {options.out}")
    return 0
