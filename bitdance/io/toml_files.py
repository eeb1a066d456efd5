"""TOML files as nested dicts, and changes to them from a command line."""

from __future__ import annotations

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
        ValueError: the file is not TOML, or a change is malformed or made twice.
    """
    text = require_file(path).read_bytes()  # a pipe would be waited for
    try:
        content = tomllib.loads(text.decode("utf-8-sig"))
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
            parsed = tomllib.loads(f"{name} ={value}") if equals else {}
        except (tomllib.TOMLDecodeError, RecursionError):
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
