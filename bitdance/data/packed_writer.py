"""The writer of data sets of packed codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance.data.packed_dataset import (
    FORMAT,
    FORMAT_WITH_VARIANTS,
    LABEL_DTYPE,
    Variants,
    as_array,
)
from bitdance.data.packed_files import copy_metadata
from bitdance.data.shard_writer import ShardWriter, check_padding
from bitdance.io.validation import exact_int

__all__ = ["PackedWriter"]


class PackedWriter(ShardWriter):
    """Write a data set; the folder appears completely or not at all.

    Args:
        folder: must not exist, or be empty.
        tokens: codes per image.
        channels: C, bits per code.
        metadata: any JSON object, for example with the names of the classes.
        shard_size: images per file.
        variants: which codes there will be of each image; by default one.

    Raises:
        FileExistsError: the folder is not empty.
        TypeError: a size is not an integer, or the metadata are not JSON.
        ValueError: a size is below 1.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile, numpy as np
        >>> from bitdance.data.packed_dataset import PackedDataset
        >>> folder = tempfile.mkdtemp()
        >>> with PackedWriter(folder, tokens=16, channels=64) as writer:
        ...     writer.write(np.zeros((3, 16, 8), np.uint8), [0, 1, 2])
        >>> len(PackedDataset(folder))
        3
    """

    def __init__(
        self, folder: str | Path, *, tokens: int, channels: int,
        metadata: Mapping[str, Any] | None = None, shard_size: int = 65536,
        variants: Variants | None = None,
    ) -> None:  # fmt: skip
        sizes = {"tokens": tokens, "channels": channels, "shard_size": shard_size}
        for name, value in sizes.items():
            sizes[name] = exact_int("PackedWriter", name, value, minimum=1)
        self._variants = variants or Variants()
        self._tokens = sizes["tokens"]
        self._shape: tuple[int, ...] = (self._tokens, -(-sizes["channels"] // 8))
        if self._variants != Variants():
            self._shape = (len(self._variants), *self._shape)
        self._channels, self._shard_size = sizes["channels"], sizes["shard_size"]
        self._metadata = copy_metadata(metadata, "PackedWriter")
        self._codes: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._pending = 0  # images that are not written yet
        super().__init__(folder)

    def write(self, packed: np.ndarray | torch.Tensor, labels: Any) -> None:
        """Add images.

        Args:
            packed: uint8 [N, tokens, ceil(C / 8)]; with variants [N, variants, tokens, ...].
            labels: integers [N] of any type.

        Raises:
            TypeError: wrong dtypes.
            ValueError: wrong shapes, or bits beyond the last channel.
            OSError: the disk is full.
            PackedDatasetError: the writer is closed, or has failed to write before.
        """
        self._check_open()
        codes, numbers = as_array(packed), as_array(labels)
        if not numbers.size or _are_integers(numbers):
            numbers = numbers.astype(np.int64)
        self._check(codes, numbers)
        while len(codes):
            room = self._shard_size - self._pending
            self._codes.append(codes[:room].copy())
            self._labels.append(numbers[:room].astype(LABEL_DTYPE))
            self._pending += len(self._codes[-1])
            codes, numbers = codes[room:], numbers[room:]
            if self._pending == self._shard_size:
                self._end_shard()

    def _index(self) -> dict[str, Any]:
        if self._pending or not self._shards:
            self._end_shard()
        content: dict[str, Any] = {
            "format": FORMAT,
            "tokens": self._tokens,
            "channels": self._channels,
            "images": sum(shard["images"] for shard in self._shards),
            "shards": self._shards,
            "metadata": self._metadata,
        }
        if self._variants != Variants():
            content |= {
                "format": FORMAT_WITH_VARIANTS, "variants": dataclasses.asdict(self._variants)
            }  # fmt: skip
        return content

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
        check_padding(codes, self._channels)

    def _end_shard(self) -> None:
        none = np.empty((0, *self._shape), np.uint8)
        arrays = {
            "codes": np.concatenate(self._codes or [none]),
            "labels": np.concatenate(self._labels or [np.empty(0, LABEL_DTYPE)]),
        }
        self._write_shard({"images": self._pending}, arrays)
        self._codes, self._labels, self._pending = [], [], 0


def _are_integers(numbers: np.ndarray) -> bool:
    """Whether floats are all exact integers, below 2^53 where floats are unambiguous."""
    if numbers.dtype.kind != "f":
        return False
    return bool((numbers == np.rint(numbers)).all() and (np.abs(numbers) < 2**53).all())
