"""Checkpoints of a run: written whole, checked when read, the newest few kept."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from bitdance.weights import CheckpointError, replace_file

__all__ = ["newest", "newest_step", "remove_leftovers", "save"]

_NAME = re.compile(r"checkpoint-(\d{8})\.pt")


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`.

    Raises:
        OSError: the folder cannot be written or the disk is full; older checkpoints are untouched.
    """
    path = folder / f"checkpoint-{step:08d}.pt"
    with replace_file(path) as temporary:
        try:
            torch.save({"step": step, **state}, temporary)
        except RuntimeError as error:  # what torch makes of a failed write
            raise OSError(f"cannot write {path}: {error}") from error
    for old in sorted(_steps(folder))[:-keep]:
        _steps(folder)[old].unlink()
    return path


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint of a folder that is whole, None without any.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged.
    """
    files = _steps(folder)
    problem = ""
    for step in sorted(files, reverse=True):
        try:
            return _read(files[step])
        except CheckpointError as error:
            problem = str(error)
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
    if files:
        raise CheckpointError(f"no checkpoint of {folder} is whole: {problem}")
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove what a run that was killed while it wrote left in its folder."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint of a folder, whole or not; 0 without any."""
    return max(_steps(folder), default=0)


def _steps(folder: Path) -> dict[int, Path]:
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match.group(1)): path for match, path in found if match}


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            spoiled = archive.testzip()  # torch.load does not compare the checksums
        if spoiled is not None:
            raise CheckpointError(f"{path} is altered: the checksum of {spoiled} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError, EOFError, KeyError, OSError, pickle.UnpicklingError, zipfile.BadZipFile,
        zlib.error,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from error
    return content
