"""The folder of a class-conditional model: ``config.json``, and the weights that it names.

The weights' file is named after its checksum, and the configuration that points to it is replaced
last. So there is a whole model at every moment, whoever is killed and however many write at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

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
    "Folder",
    "check_replaceable",
    "is_weights_of",
    "open_folder",
    "read_consistently",
    "read_content",
    "write_folder",
]

FORMAT = "bitdance-1"
MAX_STEPS = 1_000_000
"""Denoising steps that a model can have as its default."""

_CONFIG = "config.json"
_OWN = re.compile(r"model-([0-9a-f]{12})\.safetensors")

Read = TypeVar("Read")


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
            raise invalid_value("classes", f"{count} names", f"{len(self.classes)} of them")


@dataclass(frozen=True)
class Folder:
    """What the ``config.json`` of a folder says, checked.

    Attributes:
        config: of the model.
        file: the weights.
        digest: their SHA-256.
        extra: classes and steps, as ``BitDance`` takes them.
    """

    config: ModelConfig
    file: Path
    digest: str
    extra: Mapping[str, Any]


def open_folder(folder: Path) -> Folder:
    """Read the configuration of a folder that ``save_pretrained`` wrote.

    Raises:
        CheckpointError: it was written by something else, is damaged, or says nonsense.
    """
    path = folder / _CONFIG
    if not path.is_file():
        raise NoModelError(
            f"{folder} has no {_CONFIG}: it was not written by save_pretrained; for an official "
            "checkpoint give the .pt file itself"
        )
    content = read_content(path)
    name = content.weights.file
    if Path(name).name != name or not os.path.exists(folder / name):
        raise CheckpointError(f"{path}: there is no file {brief(name)} beside it")
    extra: dict[str, Any] = {"num_inference_steps": content.steps}
    if content.classes:
        extra["classes"] = content.classes
    return Folder(content.model, require_file(folder / name), content.weights.sha256, extra)


def read_content(path: Path) -> _Content:
    """The ``config.json`` of a folder, with the types that it must have.

    Raises:
        CheckpointError: it is of something else, or damaged.
        FileNotFoundError: no such file.
    """
    content = read_json(path)
    if content.get("format") != FORMAT:
        kind = content.get("model_type")
        of = "" if kind is None else f" (it is of a language model, {brief(kind)})"
        got = brief(content.get("format"))
        raise NoModelError(f"{path}: format must be {FORMAT!r}, got {got}{of}")
    try:
        return parse(_Content, content, "its content")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from error


def is_weights_of(folder: Path, file: str) -> bool:
    """Whether the ``config.json`` of `folder` is of this library and names `file`."""
    try:
        return read_content(folder / _CONFIG).weights.file == file
    except (CheckpointError, FileNotFoundError):
        return False


def read_consistently(folder: Path, read: Callable[[], Read]) -> Read:
    """Read a folder; once more if somebody else has replaced the model meanwhile."""
    for _ in range(9):
        before = _version(folder / _CONFIG)
        try:
            return read()
        except (CheckpointError, FileNotFoundError):
            if _version(folder / _CONFIG) == before:
                raise
    return read()


def _version(path: Path) -> tuple[int, int] | None:
    """Another one for each file that is put in the place of `path`."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def check_replaceable(folder: Path) -> _Content | None:
    """Check that a model can be written into `folder` without replacing what is not ours.

    Returns:
        What the ``config.json`` there says; None without one.

    Raises:
        FileExistsError: there is a ``config.json`` that this library did not write, or a file in
            the folder's place.
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
            f"{folder} holds something else, nothing was written; choose another folder "
            f"({one_line(error)})"
        ) from error


def write_folder(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    config: ModelConfig,
    classes: Sequence[str],
    steps: int,
) -> None:
    """Write a model, and remove the one of this library that it replaces.

    Raises:
        FileExistsError: the folder holds the configuration of something else; nothing was written.
        OSError: the folder cannot be written or the disk is full; what was there is unchanged.
        ValueError: a weight is not finite, so that it could not be loaded again.
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
        with locked(folder):  # one writer after the other, from here to the end
            before = check_replaceable(folder)
            if file.exists() and not (file.is_file() and files.sha256(file) == digest):
                raise FileExistsError(f"{file} is of something else; choose another folder")
            publish(fresh, file)
            files.write_text(folder / _CONFIG, json.dumps(content, indent=2) + "\n")
            _remove_replaced(folder, file, before)


def _remove_replaced(folder: Path, file: Path, before: _Content | None) -> None:
    """Remove the weights that `file` replaces, and those of writers that were killed.

    A file of this library has the checksum that its name tells, so no other is taken for one.
    """
    for path in folder.iterdir():
        own = _OWN.fullmatch(path.name)
        if path == file or not own or not path.is_file():
            continue
        named = before is not None and path.name == before.weights.file
        if named or files.sha256(path).startswith(own.group(1)):
            path.unlink(missing_ok=True)
