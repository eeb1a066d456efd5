"""Data sets of packed codes, memory-mapped.

A data set is a folder of ``.npy`` files and an ``index.json`` with their checksums; see
docs/packed_format.md.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import FailFast, Field
from torch.utils.data import Dataset

from bitdance.io import files
from bitdance.io.files import one_line
from bitdance.io.json_files import read_json
from bitdance.io.settings import Count, Integer, ListOrTuple, Text, invalid, parse, settings
from bitdance.io.staging import StagedFolder
from bitdance.io.validation import brief, exact_int

__all__ = ["PackedDataset", "PackedDatasetError", "PackedWriter", "is_packed"]

FORMAT = "bitdance-packed-1"
_INDEX = "index.json"
_LABEL = np.dtype("<i8")


class PackedDatasetError(ValueError):
    """A folder is not a complete data set of packed codes."""


@settings
class _File:
    file: Text
    sha256: Text


@settings
class _Shard:
    images: Annotated[Integer, Field(ge=0, le=2**60)]
    codes: _File
    labels: _File


@settings
class _Index:
    format: Text
    tokens: Count
    channels: Count
    images: Annotated[Integer, Field(ge=0, le=2**60)]
    shards: Annotated[tuple[_Shard, ...], FailFast(), ListOrTuple, Field(min_length=1)]
    metadata: dict[str, Any]

    def __post_init__(self) -> None:
        count = sum(shard.images for shard in self.shards)
        if self.images != count:
            raise invalid(self, "images", f"the shards' {count}")


def is_packed(folder: str | Path) -> bool:
    """Whether a folder has the index of a data set of packed codes."""
    return (Path(folder) / _INDEX).is_file()


class PackedWriter:
    """Write a data set; the folder appears completely or not at all.

    Args:
        folder: must not exist, or be empty.
        tokens: codes per image.
        channels: C, bits per code.
        metadata: any JSON object, for example with the names of the classes.
        shard_size: images per file.

    Raises:
        FileExistsError: the folder is not empty.
        TypeError: a size is not an integer, or the metadata are not JSON.
        ValueError: a size is below 1.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile, numpy as np
        >>> folder = tempfile.mkdtemp()
        >>> with PackedWriter(folder, tokens=16, channels=64) as writer:
        ...     writer.write(np.zeros((3, 16, 8), np.uint8), [0, 1, 2])
        >>> len(PackedDataset(folder))
        3
    """

    def __init__(
        self, folder: str | Path, *, tokens: int, channels: int,
        metadata: Mapping[str, Any] | None = None, shard_size: int = 65536,
    ) -> None:  # fmt: skip
        sizes = {"tokens": tokens, "channels": channels, "shard_size": shard_size}
        for name, value in sizes.items():
            sizes[name] = exact_int("PackedWriter", name, value, minimum=1)
        self._shape = (sizes["tokens"], -(-sizes["channels"] // 8))
        self._channels, self._shard_size = sizes["channels"], sizes["shard_size"]
        self._metadata = _copy_metadata(metadata)
        self._codes: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._pending = 0  # images that are not written yet
        self._shards: list[dict[str, Any]] = []
        self._state = ""  # why nothing more can be written
        self._staged = StagedFolder(folder)

    def write(self, packed: np.ndarray | torch.Tensor, labels: Any) -> None:
        """Add images.

        Args:
            packed: uint8 [N, tokens, ceil(C / 8)].
            labels: integers [N] of any type.

        Raises:
            TypeError: wrong dtypes.
            ValueError: wrong shapes, or bits beyond the last channel.
            OSError: the disk is full.
            PackedDatasetError: the writer is closed, or has failed to write before.
        """
        self._check_open()
        codes, numbers = _as_array(packed), _as_array(labels)
        if not numbers.size or _are_integers(numbers):
            numbers = numbers.astype(np.int64)
        self._check(codes, numbers)
        while len(codes):
            room = self._shard_size - self._pending
            self._codes.append(codes[:room].copy())
            self._labels.append(numbers[:room].astype(_LABEL))
            self._pending += len(self._codes[-1])
            codes, numbers = codes[room:], numbers[room:]
            if self._pending == self._shard_size:
                self._end_shard()

    def close(self) -> None:
        """Move the complete data set to its folder.

        Raises:
            OSError: the disk is full.
            PackedDatasetError: the writer is closed, or has failed to write before.
        """
        self._check_open()
        try:
            if self._pending or not self._shards:
                self._end_shard()
            content: dict[str, Any] = {
                "format": FORMAT,
                "tokens": self._shape[0],
                "channels": self._channels,
                "images": sum(shard["images"] for shard in self._shards),
                "shards": self._shards,
                "metadata": self._metadata,
            }
            content["sha256"] = _digest(content)
            files.write_text(self._staged.path / _INDEX, json.dumps(content, indent=1) + "\n")
            self._staged.commit()
            self._state = "closed"
        finally:
            self._state = self._state or "broken: a write failed"
            self._staged.discard()

    def __enter__(self) -> PackedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            if kind is None:
                self.close()
        finally:
            self._state = self._state or "closed"
            self._staged.discard()

    def _check_open(self) -> None:
        if self._state:
            raise PackedDatasetError(
                f"the writer of {self._staged.folder} is {self._state}; nothing more can be written"
            )

    def _check(self, codes: np.ndarray, numbers: np.ndarray) -> None:
        if codes.dtype != np.uint8 or not np.issubdtype(numbers.dtype, np.integer):
            raise TypeError(
                f"write: packed must be uint8 and labels integers, got {codes.dtype} and "
                f"{numbers.dtype}"
            )
        if codes.shape[1:] != self._shape or numbers.shape != codes.shape[:1]:
            raise ValueError(
                f"write: packed must be {['N', *self._shape]} and labels [N], got "
                f"{list(codes.shape)} and {list(numbers.shape)}"
            )
        if numbers.dtype == np.uint64 and (numbers > np.iinfo(np.int64).max).any():
            raise ValueError(f"write: labels must fit int64, got {numbers.max()}")
        if self._channels % 8 and (codes[..., -1] >> self._channels % 8).any():
            raise ValueError(
                f"write: packed must have 0 in the bits after channel {self._channels}, got 1"
            )

    def _end_shard(self) -> None:
        number = len(self._shards)
        none = np.empty((0, *self._shape), np.uint8)
        parts = {
            "codes": np.concatenate(self._codes or [none]),
            "labels": np.concatenate(self._labels or [np.empty(0, _LABEL)]),
        }
        shard: dict[str, Any] = {"images": self._pending}
        for kind, array in parts.items():
            path = self._staged.path / f"{kind}-{number:05d}.npy"
            try:
                with path.open("wb") as file:
                    np.save(file, array)
                    file.flush()
                    os.fsync(file.fileno())
                shard[kind] = {"file": path.name, "sha256": files.sha256(path)}
            except OSError as error:
                # These images are lost: a data set without them must not appear.
                self._state = "broken: a write failed"
                raise OSError(
                    error.errno, f"cannot write {self._staged.folder}: {error.strerror}"
                ) from error
        self._shards.append(shard)
        self._codes, self._labels, self._pending = [], [], 0


class PackedDataset(Dataset[tuple[torch.Tensor, int]]):
    """A data set of packed codes, memory-mapped.

    Args:
        folder: folder that ``PackedWriter`` wrote.
        verify: compare all checksums now, about a second per gigabyte.

    Attributes:
        tokens: codes per image.
        channels: C, bits per code.
        labels: int64 [N]; memory-mapped too where there is one shard.
        metadata: the writer's metadata.
        identity: checksum of codes and labels, independent of their path.

    Raises:
        FileNotFoundError: there is no data set.
        PackedDatasetError: a file is missing, truncated or altered.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self._folder = Path(folder).absolute()
        if not is_packed(self._folder):
            raise FileNotFoundError(f"{folder} has no packed codes ({_INDEX})")
        index = self._read_index(verify)
        self.tokens, self.channels = index.tokens, index.channels
        self.metadata: dict[str, Any] = index.metadata
        shape = (self.tokens, -(-self.channels // 8))
        shards = [
            (
                self._map(shard.codes, (shard.images, *shape), np.uint8, verify),
                self._map(shard.labels, (shard.images,), _LABEL, verify),
            )
            for shard in index.shards
        ]
        self._codes = [codes for codes, _ in shards]
        parts = [labels for _, labels in shards]
        self.labels: np.ndarray = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self._ends = np.cumsum([len(codes) for codes in self._codes])

    def _read_index(self, verify: bool) -> _Index:
        path = self._folder / _INDEX
        try:
            content = read_json(path)
            if content.get("format") != FORMAT:
                got = brief(content.get("format"))
                raise PackedDatasetError(f"{self._folder}: format must be {FORMAT!r}, got {got}")
            digest = content.pop("sha256", None)  # optional, for an index that was made elsewhere
            if verify and digest not in (None, _digest(content)):
                raise PackedDatasetError(f"{path} is altered: its checksum differs")
            index = parse(_Index, content, "its content")
            self.identity = _digest({"shards": content["shards"]})
        except PackedDatasetError:
            raise
        except (ValueError, RecursionError) as error:
            raise PackedDatasetError(f"{path} is damaged: {one_line(error)}") from error
        return index

    def _map(self, entry: _File, shape: tuple[int, ...], dtype: Any, verify: bool) -> np.ndarray:
        path = self._folder / entry.file
        if path.name != entry.file or not os.path.isfile(path):
            raise PackedDatasetError(f"{self._folder}: there is no file {brief(entry.file)}")
        if verify and files.sha256(path) != entry.sha256:
            raise PackedDatasetError(f"{path} is altered: its checksum differs")
        try:
            # An empty file cannot be mapped.
            array = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False)
        except Exception as error:  # NumPy reads the header as Python, which can fail in many ways
            raise PackedDatasetError(f"{path} is damaged: {one_line(error)}") from error
        if array.shape != shape or array.dtype != dtype:
            raise PackedDatasetError(
                f"{path} must be {np.dtype(dtype)} {list(shape)}, got {array.dtype} "
                f"{list(array.shape)}"
            )
        return array

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Callable[[Path], PackedDataset], tuple[Path]]:
        # A worker process maps the files itself; pickling the arrays would copy all bytes.
        return functools.partial(type(self), verify=False), (self._folder,)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Codes uint8 [tokens, ceil(C / 8)] and label of one image.

        Raises:
            IndexError: there is no such image.
            TypeError: the index is not an integer.
        """
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        codes, labels = self.take(np.array([index % len(self)]))
        return codes[0], int(labels[0])

    def take(self, indices: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Many images, in any order.

        Args:
            indices: integers [n], 0 to N - 1: an array, a tensor or a list.

        Returns:
            Codes uint8 [n, tokens, ceil(C / 8)], and labels int64 [n].

        Raises:
            IndexError: there is no such image.
            TypeError: the indices are not integers.
            ValueError: they have another rank than 1.
        """
        indices = _as_array(indices)
        if indices.ndim != 1:
            raise ValueError(f"indices must have 1 dimension, got {indices.ndim}")
        if not len(indices):
            indices = indices.astype(np.int64)
        if not np.issubdtype(indices.dtype, np.integer):
            raise TypeError(f"indices must be integers, got {indices.dtype}")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(
                f"indices must be 0 to {len(self) - 1}, got {indices.min()} to {indices.max()}"
            )
        labels = torch.from_numpy(self.labels[indices])
        if len(self._codes) == 1:
            return torch.from_numpy(self._codes[0][indices]), labels
        codes = np.empty((len(indices), *self._codes[0].shape[1:]), np.uint8)
        shard = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(shard):
            here = shard == number
            first = self._ends[number] - len(self._codes[number])
            codes[here] = self._codes[number][indices[here] - first]
        return torch.from_numpy(codes), labels


def _as_array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _are_integers(numbers: np.ndarray) -> bool:
    """Whether floats are all exact integers, below 2^53 where floats are unambiguous."""
    if numbers.dtype.kind != "f":
        return False
    return bool((numbers == np.rint(numbers)).all() and (np.abs(numbers) < 2**53).all())


def _copy_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy as JSON returns it."""
    try:
        copy = json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"PackedWriter: metadata must be JSON, got {error}") from None
    return dict(copy)


def _digest(index: Mapping[str, Any]) -> str:
    """Checksum of the content of an index, independent of its formatting."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
