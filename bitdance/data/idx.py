"""Labelled images from pairs of IDX files, as MNIST and its successors are published."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bitdance.data.image_folders import Split
from bitdance.io.image_files import ImageError, printable

__all__ = ["IdxImages", "is_idx", "read_idx"]

_STEMS = {"train": ("train",), "test": ("t10k", "test")}
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_DEFLATE = 1032  # no byte of it stands for more


def is_idx(folder: Path) -> bool:
    """Whether a folder holds images in IDX files."""
    return any(path.name[0] != "." for path in folder.glob(f"*-{_IMAGES}*"))


class IdxImages:
    """The images of a pair of IDX files, padded with black to a square.

    The classes of every part are those of the training labels, where these exist.

    Args:
        folder: holds "<split>-images-idx3-ubyte" and "<split>-labels-idx1-ubyte", perhaps ".gz".
        size: pixels a side, at least the images'.
        split: "train" or "test" (files named "t10k-..." or "test-...").
        classes: names; by default the numbers.

    Raises:
        FileNotFoundError: a file is missing.
        ImageError: a file is damaged, or is not about the images of the other.
        ValueError: `size` is too small, or there are fewer names than classes.
    """

    def __init__(
        self, folder: Path, size: int, split: Split = "train", classes: Sequence[str] = ()
    ) -> None:
        files = _find(folder, split, _IMAGES), _find(folder, split, _LABELS)
        images, labels = read_idx(files[0], 3), read_idx(files[1], 1)
        if len(images) != len(labels):
            raise ImageError(
                f"{printable(files[0])} and {files[1].name} do not belong together: "
                f"{len(images)} images and {len(labels)} labels"
            )
        if not images.size:
            raise ImageError(f"{printable(files[0])} has no pixels: {list(images.shape)}")
        if max(images.shape[1:]) > size:
            raise ValueError(
                f"{printable(folder)}: size must be at least {max(images.shape[1:])}, got {size}"
            )
        known = _training_labels(folder, labels)
        count = int(known.max()) + 1
        if labels.max() >= count:
            raise ImageError(
                f"{printable(files[1])} has the label {labels.max()}, but the training images have "
                f"{count} classes"
            )
        self.labels = labels.astype(np.int64)
        self.classes = tuple(classes) or tuple(str(i) for i in range(count))
        if len(self.classes) < count:
            raise ValueError(
                f"{printable(files[1])} has {count} classes, but {len(self.classes)} names"
            )
        self.source: tuple[int, int] = images.shape[1:]
        self._images, self.size = images, size

    def __len__(self) -> int:
        return len(self.labels)

    def identity(self) -> str:
        """Checksum of pixels and labels."""
        digest = hashlib.sha256(repr(self._images.shape).encode())
        for array in (self._images, self.labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def take(self, indices: np.ndarray) -> torch.Tensor:
        """Images of these numbers, uint8 [n, 3, size, size]."""
        pixels = torch.from_numpy(self._images[indices])
        height, width = self.source
        left, top = (self.size - width) // 2, (self.size - height) // 2
        right, bottom = self.size - width - left, self.size - height - top
        return F.pad(pixels, (left, right, top, bottom)).unsqueeze(1).repeat(1, 3, 1, 1)


def _find(folder: Path, split: Split, kind: str) -> Path:
    names = [f"{stem}-{kind}{end}" for stem in _STEMS[split] for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{printable(folder)} has none of {', '.join(names)}")


def _training_labels(folder: Path, labels: np.ndarray) -> np.ndarray:
    """The labels that tell the classes: those of the training part, else of this one."""
    try:
        found = read_idx(_find(folder, "train", _LABELS), 1)
    except FileNotFoundError:
        return labels
    return found if len(found) else labels


def read_idx(path: Path, dims: int) -> np.ndarray:
    """The uint8 array of `dims` dimensions in an IDX file, packed with gzip or not.

    No more is unpacked than the file's header says.

    Raises:
        ImageError: the file is no such IDX file, truncated, or longer than it says.
    """
    packed = path.suffix == ".gz"
    try:
        limit = path.stat().st_size * (_DEFLATE if packed else 1)
        with gzip.open(path) if packed else path.open("rb") as file:
            return _read(file, dims, limit, printable(path))
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{printable(path)} is damaged: {error}") from error


def _read(file: BufferedIOBase, dims: int, limit: int, name: str) -> np.ndarray:
    # Two zero bytes, 8 for unsigned bytes, the number of dimensions, then these as big-endian.
    header = file.read(4)
    if len(header) < 4 or header[:3] != b"\0\0\x08":
        raise ImageError(f"{name} is no IDX file of bytes")
    if header[3] != dims:
        raise ImageError(f"{name} must have {dims} dimensions, got {header[3]}")
    sides = file.read(4 * dims)
    shape = [int.from_bytes(sides[i : i + 4], "big") for i in range(0, len(sides), 4)]
    count = math.prod(shape)
    if len(sides) < 4 * dims or count > limit:
        raise ImageError(f"{name} is damaged: it is too short for the shape {shape}")
    body = file.read(count + 1)
    if len(body) != count:
        some = "more" if len(body) > count else str(len(body))
        raise ImageError(f"{name} is damaged: {some} bytes of values, expected shape {shape}")
    return np.frombuffer(body, np.uint8).reshape(shape)
