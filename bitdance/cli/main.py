"""The parser of the command line, and ``main``, which runs one command.

Exit status: 0 success, 1 failure (one line says why), 2 wrong usage, 130 stopped with Ctrl-C, 141
nobody reads the output any more, 143 stopped with SIGTERM. Files are written completely or not at
all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bitdance.cli import (
    bench,
    completion,
    demo,
    evaluate,
    export,
    generate,
    info,
    metrics,
    reconstruct,
    sample,
    serve,
    tokenize,
    train,
)
from bitdance.cli.arguments import check_device, make_strict
from bitdance.cli.errors import run_command
from bitdance.cli.report import run_and_print
from bitdance_kernels import __version__

__all__ = ["main"]

_COMMANDS = (
    generate, sample, demo, serve, reconstruct, info, export, train, tokenize, evaluate, metrics,
    bench,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    name = "bitdance"

    def command() -> int:
        nonlocal name
        options = _parser().parse_args(arguments)
        name = f"bitdance {options.command}"
        if "device" in options:
            check_device(options.device)
        return run_and_print(options.run, options)

    return run_command(lambda: name, command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bitdance",
        description="Generate images with BitDance models, whose tokens are bits.",
        epilog="`bitdance COMMAND --help` explains a command. "
        "`python -m bitdance_kernels` shows what this machine supports.",
    )
    parser.add_argument("--version", action="version", version=f"bitdance {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_command(commands)
    completion.add_command(commands, parser)
    make_strict(parser)
    return parser
