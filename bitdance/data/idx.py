"""Labeled images from IDX files, the format of MNIST and its successors."""

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

from bitdance.data.crops import CropDraw
from bitdance.data.image_folders import Split
from bitdance.io.image_files import ImageError, printable

__all__ = ["IdxImages", "is_idx", "read_idx"]

_STEMS = {"train": ("train",), "test": ("t10k", "test")}
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_MAX_INFLATION = 1032  # largest ratio that deflate can reach


def is_idx(folder: Path) -> bool:
    """Whether a folder contains images in IDX files."""
    return any(path.name[0] != "." for path in folder.glob(f"*-{_IMAGES}*"))


class IdxImages:
    """The images of a pair of IDX files, padded with black to a square.

    Both splits have the classes of the training labels, where there are any.

    Args:
        folder: folder with "<split>-images-idx3-ubyte" and "<split>-labels-idx1-ubyte", or the same
            names with ".gz".
        size: pixels a side, at least the size of the images.
        split: "train" or "test" (files named "t10k-..." or "test-...").
        classes: names of the classes; by default their numbers.

    Raises:
        FileNotFoundError: a file is missing.
        ImageError: a file is damaged, or the files do not belong together.
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
        count = int(_training_labels(folder, labels).max()) + 1
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

    def take(
        self, indices: np.ndarray, crops: Sequence[CropDraw | None] | None = None
    ) -> torch.Tensor:
        """Images by number, uint8 [n, 3, size, size].

        Raises:
            ValueError: there are `crops`, which padded images do not have.
        """
        if crops is not None:
            raise ValueError("IdxImages: crops must be None, since images are padded")
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
    """Labels of the training split where there are any, otherwise `labels`."""
    try:
        training = read_idx(_find(folder, "train", _LABELS), 1)
    except FileNotFoundError:
        return labels
    return training if len(training) else labels


def read_idx(path: Path, dims: int) -> np.ndarray:
    """The uint8 array of `dims` dimensions in an IDX file, which may be compressed with gzip.

    No more is decompressed than the file's header says.

    Raises:
        ImageError: the file is not such an IDX file, is truncated, or is longer than its header
            says.
    """
    compressed = path.suffix == ".gz"
    try:
        limit = path.stat().st_size * (_MAX_INFLATION if compressed else 1)
        with gzip.open(path) if compressed else path.open("rb") as file:
            return _read(file, dims, limit, printable(path))
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{printable(path)} is damaged: {error}") from error


def _read(file: BufferedIOBase, dims: int, limit: int, name: str) -> np.ndarray:
    # Two zero bytes, 8 for unsigned bytes, the number of dimensions, the sizes in big-endian.
    header = file.read(4)
    if len(header) < 4 or header[:3] != b"\0\0\x08":
        raise ImageError(f"{name} is not an IDX file of bytes")
    if header[3] != dims:
        raise ImageError(f"{name} must have {dims} dimensions, got {header[3]}")
    sides = file.read(4 * dims)
    shape = [int.from_bytes(sides[i : i + 4], "big") for i in range(0, len(sides), 4)]
    count = math.prod(shape)
    if len(sides) < 4 * dims or count > limit:
        raise ImageError(f"{name} is damaged: it is too short for the shape {shape}")
    body = file.read(count + 1)
    if len(body) != count:
        got = f"more than {count}" if len(body) > count else str(len(body))
        raise ImageError(f"{name} is damaged: it must have {count} bytes of values, got {got}")
    return np.frombuffer(body, np.uint8).reshape(shape)
