"""Data sets of packed codes with captions, memory-mapped.

Images are kept by resolution: each shard has codes of one grid. See docs/packed_format.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import FailFast, Field

from bitdance.data.packed_files import (
    INDEX,
    FileEntry,
    PackedDatasetError,
    index_digest,
    map_array,
    read_index,
)
from bitdance.io.files import one_line
from bitdance.io.settings import Count, Integer, ListOrTuple, Text, invalid, settings

__all__ = ["CAPTIONED_FORMAT", "END_DTYPE", "CaptionedDataset"]

CAPTIONED_FORMAT = "bitdance-captioned-1"
END_DTYPE = np.dtype("<i8")

_Images = Annotated[Integer, Field(ge=0, le=2**60)]


@settings
class _Shard:
    grid: Annotated[tuple[Count, Count], ListOrTuple]
    images: _Images
    codes: FileEntry
    texts: FileEntry
    ends: FileEntry
    firsts: FileEntry


@settings
class _Index:
    format: Text
    channels: Count
    images: _Images
    shards: Annotated[tuple[_Shard, ...], FailFast(), ListOrTuple, Field(min_length=1)]
    metadata: dict[str, Any]

    def __post_init__(self) -> None:
        count = sum(shard.images for shard in self.shards)
        if self.images != count:
            raise invalid(self, "images", f"the shards' {count}")


class _Texts:
    """Ids and captions of a shard's images."""

    def __init__(self, texts: np.ndarray, ends: np.ndarray, firsts: np.ndarray) -> None:
        self._texts, self._ends, self.firsts = texts, ends, firsts

    def check(self, images: int) -> str:
        """What is wrong with the numbers, or an empty text."""
        lengths, counts = np.diff(self._ends, prepend=0), np.diff(self.firsts)
        if (lengths < 0).any() or (self._ends[-1] if len(self._ends) else 0) != len(self._texts):
            return "ends of texts"
        if self.firsts[0] != 0 or self.firsts[-1] != len(self._ends) or (counts < 2).any():
            return "numbers of captions"
        return "" if len(self.firsts) == images + 1 else "number of images"

    def text(self, number: int) -> str:
        start = self._ends[number - 1] if number else 0
        try:
            return self._texts[start : self._ends[number]].tobytes().decode("utf-8")
        except UnicodeDecodeError as error:  # its checksum was not compared, or is of this text
            raise PackedDatasetError(f"text {number} is not UTF-8: {one_line(error)}") from error


class CaptionedDataset:
    """Packed codes of images of several sizes, each with an id and captions.

    Args:
        folder: folder that ``CaptionedWriter`` wrote.
        verify: compare all checksums now, about a second per gigabyte.

    Attributes:
        channels: C, bits per code.
        grids: int64 [N, 2], codes of each image, vertically and horizontally.
        metadata: the writer's metadata.
        identity: checksum of codes and captions, independent of their path.

    Raises:
        FileNotFoundError: there is no data set.
        PackedDatasetError: a file is missing, truncated or altered.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self._folder = Path(folder).absolute()
        if not (self._folder / INDEX).is_file():
            raise FileNotFoundError(f"{folder} has no packed codes with captions ({INDEX})")
        index, content = read_index(self._folder, _Index, (CAPTIONED_FORMAT,), verify=verify)
        self.channels, self.metadata = index.channels, index.metadata
        self.identity = index_digest({"shards": content["shards"]})
        read = functools.partial(map_array, self._folder, verify=verify)
        width = -(-self.channels // 8)
        self._codes, self._texts = [], []
        for shard in index.shards:
            height, columns = shard.grid
            shape = (shard.images, height * columns, width)
            self._codes.append(read(shard.codes, shape, np.uint8))
            texts = _Texts(
                read(shard.texts, (None,), np.uint8),
                read(shard.ends, (None,), END_DTYPE),
                read(shard.firsts, (shard.images + 1,), END_DTYPE),
            )
            if problem := texts.check(shard.images):
                raise PackedDatasetError(f"{self._folder / shard.ends.file}: wrong {problem}")
            self._texts.append(texts)
        sizes = [shard.images for shard in index.shards]
        self.grids: np.ndarray = np.repeat(
            np.array([shard.grid for shard in index.shards], np.int64), sizes, axis=0
        )
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return len(self.grids)

    def __reduce__(self) -> tuple[Callable[[Path], CaptionedDataset], tuple[Path]]:
        # A worker process maps the files itself; pickling the arrays would copy all bytes.
        return functools.partial(type(self), verify=False), (self._folder,)

    def codes(self, index: int) -> np.ndarray:
        """Codes of an image, uint8 [h w, ceil(C / 8)] in raster order.

        Raises:
            IndexError: there is no such image.
        """
        shard, number = self._locate(index)
        return self._codes[shard][number]

    def id(self, index: int) -> str:
        """Id of an image, which its source gave it.

        Raises:
            IndexError: there is no such image.
            PackedDatasetError: it is not UTF-8.
        """
        shard, number = self._locate(index)
        texts = self._texts[shard]
        return texts.text(int(texts.firsts[number]))

    def captions(self, index: int) -> list[str]:
        """Captions of an image, one or more.

        Raises:
            IndexError: there is no such image.
            PackedDatasetError: it is not UTF-8.
        """
        texts, numbers = self._of_captions(index)
        return [texts.text(number) for number in numbers]

    def caption_count(self, index: int) -> int:
        """How many captions an image has.

        Raises:
            IndexError: there is no such image.
        """
        return len(self._of_captions(index)[1])

    def caption(self, index: int, number: int) -> str:
        """One of the captions of an image.

        Raises:
            IndexError: there is no such image, or caption.
            PackedDatasetError: it is not UTF-8.
        """
        texts, numbers = self._of_captions(index)
        return texts.text(numbers[number])

    def _of_captions(self, index: int) -> tuple[_Texts, range]:
        """Texts of a shard, and the numbers of an image's captions among them."""
        shard, number = self._locate(index)
        texts = self._texts[shard]
        first, end = (int(texts.firsts[number + i]) for i in (0, 1))
        return texts, range(first + 1, end)

    def _locate(self, index: int) -> tuple[int, int]:
        """Shard of an image, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be 0 to {len(self) - 1}, got {index}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, int(index - self._ends[shard] + len(self._codes[shard]))
