"""The writer of data sets of packed codes with captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance.data.captioned_dataset import CAPTIONED_FORMAT, END_DTYPE
from bitdance.data.packed_dataset import as_array
from bitdance.data.packed_files import PackedDatasetError, copy_metadata
from bitdance.data.shard_writer import ShardWriter, check_padding
from bitdance.io.validation import brief, exact_int

__all__ = ["CaptionedWriter"]


@dataclass
class _Pending:
    """Images of one grid that are not written yet."""

    codes: list[np.ndarray] = field(default_factory=list)
    texts: list[list[bytes]] = field(default_factory=list)
    bytes: int = 0


class CaptionedWriter(ShardWriter):
    """Write a data set; the folder appears completely or not at all.

    Args:
        folder: must not exist, or be empty.
        channels: C, bits per code.
        metadata: any JSON object.
        shard_size: images per file.
        max_bytes: codes and texts that wait in memory; beyond them, the grid with the most of them
            is written though it has fewer images.

    Raises:
        FileExistsError: the folder is not empty.
        TypeError: a size is not an integer, or the metadata are not JSON.
        ValueError: a size is below 1.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile, numpy as np
        >>> from bitdance.data.captioned_dataset import CaptionedDataset
        >>> folder = tempfile.mkdtemp()
        >>> with CaptionedWriter(folder, channels=64) as writer:
        ...     writer.write("fox.png", np.zeros((4, 2, 8), np.uint8), ["a red fox", "a fox"])
        >>> data = CaptionedDataset(folder)
        >>> data.id(0), data.captions(0), data.grids.tolist()
        ('fox.png', ['a red fox', 'a fox'], [[4, 2]])
    """

    def __init__(
        self, folder: str | Path, *, channels: int, metadata: Mapping[str, Any] | None = None,
        shard_size: int = 65536, max_bytes: int = 2**28,
    ) -> None:  # fmt: skip
        name = "CaptionedWriter"
        self._channels = exact_int(name, "channels", channels, minimum=1)
        self._shard_size = exact_int(name, "shard_size", shard_size, minimum=1)
        self._max_bytes = exact_int(name, "max_bytes", max_bytes, minimum=1)
        self._metadata = copy_metadata(metadata, name)
        self._pending: dict[tuple[int, int], _Pending] = {}
        super().__init__(folder)

    def write(self, id: str, packed: np.ndarray | torch.Tensor, captions: Sequence[str]) -> None:
        """Add an image.

        Args:
            id: any text that tells where the image is from.
            packed: uint8 [h, w, ceil(C / 8)].
            captions: one or more texts, none of them empty.

        Raises:
            TypeError: wrong types.
            ValueError: a wrong shape, bits beyond the last channel, or no caption.
            OSError: the disk is full.
            PackedDatasetError: the writer is closed, or has failed to write before.
        """
        self._check_open()
        codes = as_array(packed)
        width = -(-self._channels // 8)
        if codes.dtype != np.uint8:
            raise TypeError(f"write: packed must be uint8, got {codes.dtype}")
        if codes.ndim != 3 or codes.shape[2] != width or not codes.size:
            raise ValueError(f"write: packed must be ['h', 'w', {width}], got {list(codes.shape)}")
        check_padding(codes, self._channels)
        texts = [_utf8("id", id), *_captions(id, captions)]
        grid = codes.shape[0], codes.shape[1]
        pending = self._pending.setdefault(grid, _Pending())
        pending.codes.append(codes.reshape(-1, width).copy())
        pending.texts.append(texts)
        pending.bytes += codes.nbytes + sum(map(len, texts))
        if len(pending.codes) == self._shard_size:
            self._end_shard(grid)
        elif sum(of_grid.bytes for of_grid in self._pending.values()) > self._max_bytes:
            self._end_shard(max(self._pending, key=lambda grid: self._pending[grid].bytes))

    def _index(self) -> dict[str, Any]:
        for grid in sorted(self._pending):
            self._end_shard(grid)
        if not self._shards:
            raise PackedDatasetError(f"{self._staged.folder}: there are no images to write")
        return {
            "format": CAPTIONED_FORMAT,
            "channels": self._channels,
            "images": sum(shard["images"] for shard in self._shards),
            "shards": self._shards,
            "metadata": self._metadata,
        }

    def _end_shard(self, grid: tuple[int, int]) -> None:
        pending = self._pending.pop(grid)
        texts = [text for of_image in pending.texts for text in of_image]
        arrays = {
            "codes": np.stack(pending.codes),
            "texts": np.frombuffer(b"".join(texts), np.uint8),
            "ends": np.cumsum([len(text) for text in texts], dtype=END_DTYPE),
            "firsts": np.cumsum([0, *map(len, pending.texts)], dtype=END_DTYPE),
        }
        self._write_shard({"grid": list(grid), "images": len(pending.codes)}, arrays)


def _captions(id: str, captions: Sequence[str]) -> list[bytes]:
    name = f"captions of {brief(id)}"
    if isinstance(captions, str | bytes) or not isinstance(captions, Sequence):
        raise TypeError(f"write: {name} must be a list of texts, got {brief(captions)}")
    if not captions:
        raise ValueError(f"write: {name} must be one or more, got none")
    texts = [_utf8(name, caption) for caption in captions]
    for text in texts:
        if not text.strip():
            raise ValueError(f"write: {name} must not be empty, got {brief(text.decode())}")
    return texts


def _utf8(name: str, text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"write: {name} must be text, got {brief(text)}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"write: {name} must be Unicode, got {brief(text)}") from None
