"""What the arguments of all commands have in common: their types, their help, the device."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import torch

__all__ = ["HelpFormatter", "check_device", "make_strict", "positive"]

_MOST = 99_999_999
"""Of counts: more would be a mistake that is noticed when memory runs out, or never."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == []
        if nothing or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def integer(text: str) -> int:
    """Any text of an integer, 1e3 too."""
    try:
        return int(text)
    except ValueError:
        pass
    value = number(text)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be an integer, got {_shown(text)}")
    return int(value)


def number(text: str) -> float:
    """Any text of a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {_shown(text)}")
    return value


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = integer(text)
    if not 1 <= value <= _MOST:
        raise argparse.ArgumentTypeError(f"must be at least 1 and at most {_MOST}, got {value:g}")
    return value


def words(text: str) -> str:
    """Any text but an empty one."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be some text, got {_shown(text)}")
    return text


def path(text: str) -> Path:
    """A path; the empty one would be the working folder."""
    return Path(words(text))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


_STRICT = {int: integer, float: number, Path: path, None: words}


def make_strict(parser: argparse.ArgumentParser) -> None:
    """Give all arguments of a parser, and of its commands, the types and the help from here."""
    parser.formatter_class = HelpFormatter
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                make_strict(command)
        elif action.nargs != 0:  # not a flag
            action.type = _STRICT.get(action.type, action.type)  # type: ignore[arg-type]


def check_device(device: str) -> None:
    """Check that PyTorch has a device here.

    Raises:
        ValueError: it is no device that the library knows.
        RuntimeError: there is no such CUDA device.
    """
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,4}))?", device)
    if match is None:
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {_shown(device)}")
    if device == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match.group(1) or 0) >= count:
        built = "" if torch.version.cuda else ", which was built without CUDA"
        raise RuntimeError(
            f"--device {device}: PyTorch {torch.__version__}{built} finds {count} CUDA devices here"
        )
