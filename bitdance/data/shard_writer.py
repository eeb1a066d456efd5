"""Writers of packed data sets: shards, then an index, in a folder that appears as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from typing_extensions import Self

from bitdance.data.packed_files import PackedDatasetError, save_array, write_index
from bitdance.io.staging import StagedFolder

__all__ = ["ShardWriter", "check_padding"]


class ShardWriter(ABC):
    """Writes shards to a folder that appears completely or not at all.

    Args:
        folder: must not exist, or be empty.

    Raises:
        FileExistsError: the folder is not empty.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self._shards: list[dict[str, Any]] = []
        self._state = ""  # why nothing more can be written
        self._staged = StagedFolder(folder)

    @abstractmethod
    def _index(self) -> Mapping[str, Any]:
        """Write what is pending; the content of the index."""

    def close(self) -> None:
        """Move the complete data set to its folder.

        Raises:
            OSError: the disk is full.
            PackedDatasetError: the data set lacks something, or the writer is closed, or has failed
                to write before.
        """
        self._check_open()
        try:
            write_index(self._staged.path, self._index())
            self._staged.commit()
            self._state = "closed"
        finally:
            self._state = self._state or "broken: a write failed"
            self._staged.discard()

    def __enter__(self) -> Self:
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

    def _write_shard(self, shard: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of a shard, and note it with their files."""
        for kind, array in arrays.items():
            name = f"{kind}-{len(self._shards):05d}.npy"
            try:
                shard[kind] = save_array(self._staged.path, name, array)
            except OSError as error:
                # These images are lost: a data set without them must not appear.
                self._state = "broken: a write failed"
                raise OSError(
                    error.errno, f"cannot write {self._staged.folder}: {error.strerror}"
                ) from error
        self._shards.append(shard)


def check_padding(codes: np.ndarray, channels: int) -> None:
    """Check codes [..., ceil(C / 8)] beyond their last channel.

    Raises:
        ValueError: a bit there is 1.
    """
    if channels % 8 and (codes[..., -1] >> channels % 8).any():
        raise ValueError(f"write: packed must have 0 in the bits after channel {channels}, got 1")
