"""TOML files as nested dicts, and changes to them from a command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from bitdance.io.files import require_file
from bitdance.io.validation import brief

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_toml"]

_MAX_BYTES = 1 << 18  # a list of class names has some 20 KB
_MAX_DOTS = 64
_KEY = re.compile(r"""^[ \t]*\[{0,2}([\w\-"' \t.]*)""", re.MULTILINE)


def _parse(text: str) -> dict[str, Any]:
    """The content of TOML text, whose keys are short: the parser takes the square of their length.

    Args:
        text: with at most 64 dots in a key.

    Raises:
        RecursionError: arrays or tables are too deep in each other.
        ValueError: it is not TOML, or a key has more dots.
    """
    for key in _KEY.finditer(text):
        if (dots := key[1].count(".")) > _MAX_DOTS:
            line = text.count("\n", 0, key.start()) + 1
            raise ValueError(
                f"a TOML key must have at most {_MAX_DOTS} dots, got {dots} in line {line}"
            )
    return tomllib.loads(text)


def read_toml(
    path: Path, changes: Sequence[str] = (), values: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The content of a TOML file, with changes.

    Args:
        path: the file.
        changes: "section.key=value" with a TOML value, or a bare word as a string; each replaces a
            value of the file.
        values: strings by "section.key", which replace values of the file too.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has more than 256 KiB, is not TOML, or has a key with more than 64
            dots; or a change is malformed or made twice.
    """
    size = require_file(path).stat().st_size  # a pipe would be waited for
    if size > _MAX_BYTES:
        raise ValueError(f"{path}: TOML must have at most {_MAX_BYTES} bytes, got {size}")
    text = path.read_bytes()
    try:
        content = _parse(text.decode("utf-8-sig"))
        merged: dict[str, Any] = {}
        for change in changes:
            _merge(merged, _parse_change(change), once=True)
        for name, value in (values or {}).items():
            _merge(merged, _nest(name, value), once=True)
        _merge(content, merged, once=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    return content


def _parse_change(change: str) -> dict[str, Any]:
    """A change as nested dicts."""
    name, equals, text = change.partition("=")
    for value in (text, tomli_w.dumps({"v": text}).removeprefix("v =")):
        try:
            parsed = _parse(f"{name} ={value}") if equals else {}
        except (ValueError, RecursionError):
            continue
        if len(parsed) == 1 and "\n" not in change:
            return parsed
    raise ValueError(f"a change must be section.key=value, got {brief(change)}")


def _nest(name: str, value: Any) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def _merge(
    content: dict[str, Any], change: Mapping[str, Any], *, once: bool, prefix: str = ""
) -> None:
    """Put the values of `change` into `content`; with `once`, no value may be there already."""
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(content.get(key, {}), Mapping):
            _merge(content.setdefault(key, {}), value, once=once, prefix=f"{prefix}{key}.")
        elif once and key in content:
            raise ValueError(
                f"{prefix}{key} must be changed once, got {brief(content[key])} and {brief(value)}"
            )
        else:
            content[key] = value
