"""Files of packed data sets: arrays beside an index with their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bitdance.io import files
from bitdance.io.files import one_line
from bitdance.io.json_files import read_json
from bitdance.io.npz import read_header, write_array
from bitdance.io.settings import Text, parse, settings
from bitdance.io.validation import brief

__all__ = [
    "INDEX",
    "FileEntry",
    "PackedDatasetError",
    "copy_metadata",
    "index_digest",
    "map_array",
    "read_index",
    "save_array",
    "write_index",
]

INDEX = "index.json"

T = TypeVar("T")


class PackedDatasetError(ValueError):
    """A folder is not a complete data set of packed codes."""


@settings
class FileEntry:
    """A file beside the index, and its checksum."""

    file: Text
    sha256: Text


def read_index(
    folder: Path, kind: type[T], formats: Sequence[str], *, verify: bool
) -> tuple[T, dict[str, Any]]:
    """The index of a data set.

    Args:
        folder: folder of the data set.
        kind: settings that describe the index.
        formats: values that its "format" may have.
        verify: compare its checksum.

    Returns:
        The index, and its content as it is in the file, without its checksum.

    Raises:
        PackedDatasetError: it is damaged, altered, or of another format.
    """
    path = folder / INDEX
    try:
        content = read_json(path)
        if content.get("format") not in formats:
            got = brief(content.get("format"))
            raise PackedDatasetError(
                f"{folder}: format must be {' or '.join(map(repr, formats))}, got {got}"
            )
        digest = content.pop("sha256", None)  # optional, for an index that was made elsewhere
        if verify and digest not in (None, index_digest(content)):
            raise PackedDatasetError(f"{path} is altered: its checksum differs")
        return parse(kind, content, "its content"), content
    except PackedDatasetError:
        raise
    except (ValueError, RecursionError) as error:
        raise PackedDatasetError(f"{path} is damaged: {one_line(error)}") from error


def map_array(
    folder: Path, entry: FileEntry, shape: tuple[int | None, ...], dtype: Any, *, verify: bool
) -> np.ndarray:
    """An array beside the index, memory-mapped; None in `shape` fits any length.

    Raises:
        PackedDatasetError: the file is missing, truncated or altered, or holds another array.
    """
    path = folder / entry.file
    if path.name != entry.file or not os.path.isfile(path):
        raise PackedDatasetError(f"{folder}: there is no file {brief(entry.file)}")
    if verify and files.sha256(path) != entry.sha256:
        raise PackedDatasetError(f"{path} is altered: its checksum differs")
    try:
        if shape[0] != 0:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:  # it cannot be mapped; and if it is not empty, nothing of its size is asked for
            with path.open("rb") as file:
                own, own_dtype, _ = read_header(file)
            array = np.broadcast_to(np.empty((), own_dtype), own)
    except Exception as error:  # NumPy reads the header as Python, which can fail in many ways
        raise PackedDatasetError(f"{path} is damaged: {one_line(error)}") from error
    fits = len(shape) == array.ndim and all(
        side in (None, own) for side, own in zip(shape, array.shape, strict=False)
    )
    if not fits or array.dtype != dtype:
        expected = ["any" if side is None else side for side in shape]
        raise PackedDatasetError(
            f"{path} must be {np.dtype(dtype)} {expected}, got {array.dtype} {list(array.shape)}"
        )
    return array


def save_array(folder: Path, name: str, array: np.ndarray) -> dict[str, Any]:
    """Write an array; returns its entry in the index.

    Raises:
        OSError: the disk is full.
    """
    path = folder / name
    with path.open("wb") as file:
        write_array(file, array)
        file.flush()
        os.fsync(file.fileno())
    return {"file": name, "sha256": files.sha256(path)}


def write_index(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the index with its checksum."""
    content = {**content, "sha256": index_digest(content)}
    files.write_text(folder / INDEX, json.dumps(content, indent=1) + "\n")


def index_digest(index: Mapping[str, Any]) -> str:
    """Checksum of the content of an index, independent of its formatting."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def copy_metadata(metadata: Mapping[str, Any] | None, writer: str) -> dict[str, Any]:
    """A copy as JSON returns it.

    Raises:
        TypeError: the metadata are not JSON.
    """
    try:
        copy = json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{writer}: metadata must be JSON, got {error}") from None
    return dict(copy)
