"""JSON files of models and data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitdance.io.files import CheckpointError, one_line, require_file
from bitdance.io.validation import brief

__all__ = ["read_json"]

_MAX_BYTES = 1 << 26  # the index of a model in many files has some million


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, whose keys must differ.

    Raises:
        CheckpointError: the file is not a JSON object.
        FileNotFoundError: there is no such file.
    """
    size = require_file(path).stat().st_size
    if size > _MAX_BYTES:
        raise CheckpointError(f"{path} has {size} bytes, too many for the JSON file of a model")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_unique_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must be a JSON object, got {type(content).__name__}")
    return content


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {brief(key)} is given twice")
        result[key] = value
    return result
