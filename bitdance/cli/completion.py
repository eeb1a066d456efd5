"""``bitdance completion``: what a shell needs to complete command lines.

``shtab`` writes the script from the parser, whose modules import PyTorch. That is once, when it is
printed: the script holds all commands and choices itself, and a press of TAB starts no Python.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

from bitdance.cli.arguments import nonempty_path
from bitdance.models.loading.bundled import BUNDLED, BUNDLED_TEXT

__all__ = ["add_command", "completion_script"]

_SHELLS = ("bash", "zsh", "fish")
_PATHS = ("autoencoder", "config", "data", "init", "tokenizer")  # texts that may be paths
_NAMES = f"{BUNDLED} {BUNDLED_TEXT}"
# The values of --model as shtab takes a completion: a function or, for fish, a command.
_MODELS = {
    "bash": "_bitdance_model_files",  # for "file" in its name, shtab has bash add / to folders
    "zsh": "_bitdance_model_files",
    "fish": f"(string split ' ' '{_NAMES}'; __fish_complete_path (commandline -ct))",
    "preamble": {
        "bash": f"""
_bitdance_model_files() {{
  compgen -W "{_NAMES}" -- "$1"
  compgen -f -- "$1"
}}""",
        "zsh": f"""
_bitdance_model_files() {{
  _alternative "models:model:({_NAMES})" "files:file:_files"
}}""",
    },
}


def add_command(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Add the command's parser to those of `parser`, whose script it prints."""
    command = commands.add_parser(
        "completion",
        help="print a script by which a shell completes commands",
        description="Print a script that completes commands, options, choices, paths and names of "
        "models. Write it once to where the shell looks: "
        "~/.local/share/bash-completion/completions/bitdance for bash, _bitdance in a folder of "
        "$fpath for zsh, ~/.config/fish/completions/bitdance.fish for fish. Needs "
        "pip install 'bitdance[completion]'.",
    )
    command.add_argument("shell", choices=_SHELLS, help="the shell that reads the script")
    command.set_defaults(run=functools.partial(run, parser))


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Run the command."""
    print(completion_script(parser, options.shell))


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell.

    Args:
        parser: the parser of all commands, which is changed into what ``shtab`` reads.
        shell: "bash", "zsh" or "fish".

    Raises:
        ImportError: ``shtab`` is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ImportError("completion needs shtab: pip install 'bitdance[completion]'") from error
    _mark(parser, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _mark(parser: argparse.ArgumentParser, file: Any) -> None:
    """Say which values are models or paths, and leave commands their short help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                command.description = None  # shtab would list it in place of the help
                _mark(command, file)
        elif action.dest == "model":
            action.complete = _MODELS  # type: ignore[attr-defined]
        elif action.type is nonempty_path or action.dest in _PATHS:
            action.complete = file  # type: ignore[attr-defined]
