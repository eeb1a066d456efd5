"""Data sets of packed codes, memory-mapped.

A data set is a folder of ``.npy`` files and an ``index.json`` with their checksums; see
docs/packed_format.md.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import FailFast, Field
from torch.utils.data import Dataset

from bitdance.data.packed_files import (
    INDEX,
    FileEntry,
    PackedDatasetError,
    index_digest,
    map_array,
    read_index,
)
from bitdance.io.settings import Bool, Count, Integer, ListOrTuple, Number, Text, invalid, settings

__all__ = ["PackedDataset", "PackedDatasetError", "Variants", "is_packed"]

FORMAT, FORMAT_WITH_VARIANTS = "bitdance-packed-1", "bitdance-packed-2"
LABEL_DTYPE = np.dtype("<i8")


@settings
class Variants:
    """Codes that a data set has of each image.

    Variant number ``crop * (1 + flips) + mirrored`` is crop 0, the middle, or 1 to `crops`, drawn
    at random, as it is or mirrored.

    Args:
        crops: random crops beside the middle.
        flips: each of them mirrored, too.
        min_crop: smallest share of the shorter side that a random crop has.

    Raises:
        ValueError: a value is out of range.
    """

    crops: Annotated[Integer, Field(ge=0, le=999)] = 0
    flips: Bool = False
    min_crop: Annotated[Number, Field(gt=0, le=1)] = 1.0

    def __len__(self) -> int:
        return (1 + self.crops) * (1 + self.flips)


@settings
class _Shard:
    images: Annotated[Integer, Field(ge=0, le=2**60)]
    codes: FileEntry
    labels: FileEntry


@settings
class _Index:
    format: Text
    tokens: Count
    channels: Count
    images: Annotated[Integer, Field(ge=0, le=2**60)]
    shards: Annotated[tuple[_Shard, ...], FailFast(), ListOrTuple, Field(min_length=1)]
    metadata: dict[str, Any]
    variants: Variants = Variants()

    def __post_init__(self) -> None:
        if (self.format == FORMAT) != (self.variants == Variants()):
            raise invalid(self, "variants", f"of a format other than {FORMAT}, or left out")
        count = sum(shard.images for shard in self.shards)
        if self.images != count:
            raise invalid(self, "images", f"the shards' {count}")


def is_packed(folder: str | Path) -> bool:
    """Whether a folder has the index of a data set of packed codes."""
    return (Path(folder) / INDEX).is_file()


class PackedDataset(Dataset[tuple[torch.Tensor, int]]):
    """A data set of packed codes, memory-mapped.

    Args:
        folder: folder that ``PackedWriter`` wrote.
        verify: compare all checksums now, about a second per gigabyte.

    Attributes:
        tokens: codes per image.
        channels: C, bits per code.
        variants: which codes there are of each image.
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
            raise FileNotFoundError(f"{folder} has no packed codes ({INDEX})")
        formats = (FORMAT, FORMAT_WITH_VARIANTS)
        index, content = read_index(self._folder, _Index, formats, verify=verify)
        self.identity = index_digest({"shards": content["shards"]})
        self.tokens, self.channels = index.tokens, index.channels
        self.metadata: dict[str, Any] = index.metadata
        self.variants = index.variants
        shape: tuple[int, ...] = (self.tokens, -(-self.channels // 8))
        if index.format != FORMAT:
            shape = (len(self.variants), *shape)
        self._shape = shape[-2:]
        read = functools.partial(map_array, self._folder)
        shards = [
            (
                read(shard.codes, (shard.images, *shape), np.uint8, verify=verify).reshape(
                    shard.images, len(self.variants), *self._shape
                ),
                read(shard.labels, (shard.images,), LABEL_DTYPE, verify=verify),
            )
            for shard in index.shards
        ]
        self._codes = [codes for codes, _ in shards]
        parts = [labels for _, labels in shards]
        self.labels: np.ndarray = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self._ends = np.cumsum([len(codes) for codes in self._codes])

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

    def take(
        self, indices: Any, variants: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Many images, in any order.

        Args:
            indices: integers [n], 0 to N - 1: an array, a tensor or a list.
            variants: int64 [n], number of the variant of each; by default 0, the middle.

        Returns:
            Codes uint8 [n, tokens, ceil(C / 8)], and labels int64 [n].

        Raises:
            IndexError: there is no such image.
            TypeError: the indices are not integers.
            ValueError: they have another rank than 1.
        """
        indices = as_array(indices)
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
        if variants is None:
            variants = np.zeros(len(indices), np.int64)
        labels = torch.from_numpy(self.labels[indices])
        if len(self._codes) == 1:
            return torch.from_numpy(self._codes[0][indices, variants]), labels
        codes = np.empty((len(indices), *self._shape), np.uint8)
        shard = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(shard):
            here = shard == number
            first = self._ends[number] - len(self._codes[number])
            codes[here] = self._codes[number][indices[here] - first, variants[here]]
        return torch.from_numpy(codes), labels


def as_array(values: Any) -> np.ndarray:
    """A NumPy array of a tensor, array or sequence."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
