"""The folder of a class-conditional model: ``config.json``, and the weights that it names.

The file of weights is named after its checksum, and ``config.json``, which refers to it, is
replaced last. So the folder is valid at any moment, even if processes are killed or write at once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import FailFast, Field

from bitdance.io import files, weights
from bitdance.io.files import (
    CheckpointError,
    NoModelError,
    locked,
    one_line,
    publish,
    remove_leftovers,
    require_file,
    temporary_file,
)
from bitdance.io.json_files import read_json
from bitdance.io.settings import Integer, ListOrTuple, Text, invalid_value, parse, settings
from bitdance.io.validation import brief
from bitdance.models.config import ModelConfig

__all__ = [
    "FORMAT",
    "ModelFolder",
    "check_replaceable",
    "is_weights_of",
    "open_folder",
    "read_content",
    "write_folder",
]

FORMAT = "bitdance-1"
MAX_STEPS = 1_000_000
"""Largest default number of denoising steps."""

_CONFIG = "config.json"
_WEIGHTS_NAME = re.compile(r"model-([0-9a-f]{12})\.safetensors")


@settings
class _Weights:
    file: Text
    sha256: Annotated[Text, Field(pattern=r"^[0-9a-f]{64}$")]


@settings
class _Content:
    format: Text
    weights: _Weights
    model: ModelConfig
    classes: Annotated[tuple[Text, ...], FailFast(), ListOrTuple] = ()
    steps: Annotated[Integer, Field(ge=1, le=MAX_STEPS)] = 100

    def __post_init__(self) -> None:
        count = self.model.num_classes
        if self.classes and len(self.classes) != count:
            raise invalid_value("classes", f"{count} names", len(self.classes))


@dataclass(frozen=True)
class ModelFolder:
    """Checked content of a ``config.json``.

    Attributes:
        config: configuration of the model.
        file: file of the weights.
        digest: SHA-256 of that file.
        extra: classes and steps, as arguments of ``BitDance``.
    """

    config: ModelConfig
    file: Path
    digest: str
    extra: Mapping[str, Any]


def open_folder(folder: Path) -> ModelFolder:
    """Read the configuration of a folder that ``save_pretrained`` wrote.

    Raises:
        CheckpointError: it was written by something else, is damaged, or has invalid values.
    """
    path = folder / _CONFIG
    if not path.is_file():
        raise NoModelError(
            f"{folder} has no {_CONFIG}, so save_pretrained has not written it; for an official "
            "checkpoint give the .pt file itself"
        )
    content = read_content(path)
    name = content.weights.file
    if Path(name).name != name or not os.path.exists(folder / name):
        raise CheckpointError(f"{path}: there is no file {brief(name)} beside it")
    extra: dict[str, Any] = {"num_inference_steps": content.steps}
    if content.classes:
        extra["classes"] = content.classes
    return ModelFolder(content.model, require_file(folder / name), content.weights.sha256, extra)


def read_content(path: Path) -> _Content:
    """Read and check the ``config.json`` of a folder.

    Raises:
        CheckpointError: it belongs to something else, or is damaged.
        FileNotFoundError: there is no such file.
    """
    content = read_json(path)
    if content.get("format") != FORMAT:
        kind = content.get("model_type")
        hint = "" if kind is None else f" (it belongs to a language model, {brief(kind)})"
        got = brief(content.get("format"))
        raise NoModelError(f"{path}: format must be {FORMAT!r}, got {got}{hint}")
    try:
        return parse(_Content, content, "its content")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from error


def is_weights_of(folder: Path, file: str) -> bool:
    """Whether `folder` has a ``config.json`` of this library that names `file`."""
    try:
        return read_content(folder / _CONFIG).weights.file == file
    except (CheckpointError, FileNotFoundError):
        return False


def check_replaceable(folder: Path) -> _Content | None:
    """Check that a model can be written into `folder` without replacing foreign files.

    Returns:
        The content of the ``config.json`` there, None without one.

    Raises:
        FileExistsError: there is a ``config.json`` that this library has not written, or `folder`
            is a file.
    """
    path = folder / _CONFIG
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} exists and is not a folder")
    if not path.exists() and not path.is_symlink():
        return None
    try:
        return read_content(path)
    except (CheckpointError, FileNotFoundError) as error:
        raise FileExistsError(
            f"{folder} contains something else, nothing was written; choose another folder "
            f"({one_line(error)})"
        ) from error


def write_folder(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    config: ModelConfig,
    classes: Sequence[str],
    steps: int,
) -> None:
    """Write a model, and remove the model of this library that it replaces.

    Raises:
        FileExistsError: the folder has the configuration of something else; nothing was written.
        OSError: the folder cannot be written or the disk is full; its model is unchanged.
        ValueError: a weight is not finite, so that the model could not be loaded again.
    """
    check_replaceable(folder)
    broken = [name for name, tensor in state.items() if not weights.is_finite(tensor)]
    if broken:
        raise ValueError(f"save_pretrained: weights must be finite, got others in {broken[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    with temporary_file(folder / "model") as fresh:
        weights.save_tensors(fresh, state)
        digest = files.sha256(fresh)
        file = folder / f"model-{digest[:12]}.safetensors"
        content = {
            "format": FORMAT,
            "weights": {"file": file.name, "sha256": digest},
            "model": config.to_dict(),
            "classes": list(classes),
            "steps": steps,
        }
        with locked(folder):  # one writer at a time
            earlier = check_replaceable(folder)
            if file.exists() and not (file.is_file() and files.sha256(file) == digest):
                raise FileExistsError(f"{file} is another file; choose another folder")
            publish(fresh, file)
            files.write_text(folder / _CONFIG, json.dumps(content, indent=2) + "\n")
            _remove_replaced(folder, file, earlier)


def _remove_replaced(folder: Path, file: Path, earlier: _Content | None) -> None:
    """Remove the weights that `file` replaces, and those that killed writers have left.

    Only files of this library have a name that contains their checksum.
    """
    for path in folder.iterdir():
        match = _WEIGHTS_NAME.fullmatch(path.name)
        if path == file or not match or not path.is_file():
            continue
        named = earlier is not None and path.name == earlier.weights.file
        if named or files.sha256(path).startswith(match.group(1)):
            path.unlink(missing_ok=True)
