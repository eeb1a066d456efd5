"""Labelled images from IDX files or from a folder with a sub-folder a class."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

__all__ = ["FolderImages", "IdxImages", "LabelledImages", "augment", "open_images", "to_float"]

Split = Literal["train", "test"]
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_IDX_STEMS = {"train": ("train",), "test": ("t10k", "test")}


class LabelledImages(Protocol):
    """A data set: `labels` int64 [N] and `classes`, their names."""

    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> torch.Tensor:
        """Images of these numbers, uint8 [n, 3, size, size]."""
        ...


def open_images(
    path: str | Path, size: int, *, split: Split = "train", classes: Sequence[str] = ()
) -> LabelledImages:
    """Open a data set.

    Args:
        path: a folder. With IDX files in it ("train-images-idx3-ubyte", "t10k-...", packed with
            gzip or not) these are read; else its sub-folders are the classes, below "train" and
            "test" (or "val") where it has these.
        size: pixels a side of what comes out.
        split: which part.
        classes: names of the classes, for IDX files.

    Raises:
        FileNotFoundError: there is no such folder, or no images in it.
        ValueError: a file is damaged, or names and labels do not fit.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder of images")
    if any(folder.glob("*-images-idx3-ubyte*")):
        return IdxImages(folder, size, split, classes)
    return FolderImages(folder, size, split)


class IdxImages:
    """The images of a pair of IDX files, padded with black to a square.

    Args:
        folder: holds "<split>-images-idx3-ubyte" and "<split>-labels-idx1-ubyte", perhaps ".gz".
        size: pixels a side, at least the images'.
        split: "train" or "test" (files named "t10k-..." or "test-...").
        classes: names; by default the numbers.
    """

    def __init__(
        self, folder: Path, size: int, split: Split = "train", classes: Sequence[str] = ()
    ) -> None:
        images = read_idx(_find_idx(folder, split, "images-idx3-ubyte"))
        labels = read_idx(_find_idx(folder, split, "labels-idx1-ubyte"))
        if images.ndim != 3 or labels.shape != images.shape[:1] or not len(labels):
            raise ValueError(
                f"{folder}: images and labels do not belong together: {list(images.shape)} and "
                f"{list(labels.shape)}"
            )
        if max(images.shape[1:]) > size:
            raise ValueError(f"{folder}: size must be at least {max(images.shape[1:])}, got {size}")
        self.labels = labels.astype(np.int64)
        count = int(self.labels.max()) + 1
        self.classes = tuple(classes) or tuple(str(i) for i in range(count))
        if len(self.classes) < count:
            raise ValueError(f"{folder} has {count} classes, but {len(self.classes)} names")
        self.source = images.shape[1:]  # height and width inside the padding
        self._images, self._size = images, size

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> torch.Tensor:
        """Images of these numbers, uint8 [n, 3, size, size]."""
        pixels = torch.from_numpy(self._images[indices])
        height, width = self.source
        left, top = (self._size - width) // 2, (self._size - height) // 2
        right, bottom = self._size - width - left, self._size - height - top
        return F.pad(pixels, (left, right, top, bottom)).unsqueeze(1).repeat(1, 3, 1, 1)


def _find_idx(folder: Path, split: Split, kind: str) -> Path:
    names = [f"{stem}-{kind}{end}" for stem in _IDX_STEMS[split] for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has none of {', '.join(names)}")


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an IDX file, packed with gzip or not.

    Raises:
        ValueError: the file is no IDX file of bytes, truncated, or longer than it says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    # Two zero bytes, 8 for unsigned bytes, the number of dimensions, then these as big-endian.
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes")
    dims = data[3]
    shape = np.frombuffer(data[4 : 4 + 4 * dims], ">u4").tolist()
    body = data[4 + 4 * dims :]
    if len(shape) != dims or len(body) != math.prod(shape):
        raise ValueError(f"{path} is damaged: {len(body)} bytes of values, expected shape {shape}")
    return np.frombuffer(body, np.uint8).reshape(shape)


class FolderImages:
    """The image files of a folder, read when they are asked for.

    Args:
        folder: with a sub-folder a class, in alphabetic order, or with "train" and "test" (or
            "val") that have these.
        size: pixels a side: images are resized so that the shorter side has them, then cut.
        split: which part; a folder without parts is "train".
    """

    def __init__(self, folder: Path, size: int, split: Split = "train") -> None:
        names = {"train": ("train",), "test": ("test", "val")}[split]
        parts = [folder / name for name in names if (folder / name).is_dir()]
        if split == "test" and not parts:
            raise FileNotFoundError(f"{folder} has no sub-folder 'test' or 'val'")
        root = parts[0] if parts else folder
        folders = sorted(p for p in root.iterdir() if p.is_dir())
        self._files: list[Path] = []
        labels: list[int] = []
        for label, path in enumerate(folders):
            files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _SUFFIXES)
            self._files += files
            labels += [label] * len(files)
        if not labels:
            raise FileNotFoundError(f"{root} has no sub-folders with images")
        self.classes = tuple(path.name for path in folders)
        self.labels = np.array(labels, np.int64)
        self.source = (size, size)
        self._size = size
        self._pool = ThreadPoolExecutor(8)  # decoders release Python's lock

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> torch.Tensor:
        """Images of these numbers, uint8 [n, 3, size, size].

        Raises:
            ValueError: a file is no image.
        """
        return torch.stack(list(self._pool.map(self._read, indices.tolist())))

    def _read(self, index: int) -> torch.Tensor:
        path, size = self._files[index], self._size
        try:
            picture = Image.open(path).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path} is no whole image: {error}") from error
        scale = size / min(picture.size)
        width, height = (max(size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def augment(images: torch.Tensor, *, flip: bool, shift: int) -> torch.Tensor:
    """Mirror and move images [B, 3, H, W] at random, by PyTorch's current random state."""
    if flip:
        mirrored = torch.rand(len(images), dtype=torch.float32, device="cpu") < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if shift:
        height, width = images.shape[2:]
        padded = F.pad(images.float(), (shift,) * 4, mode="replicate").to(images.dtype)
        shape = (len(images), 2)
        offsets = torch.randint(2 * shift + 1, shape, dtype=torch.int64, device="cpu").tolist()
        images = torch.stack(
            [p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets, strict=True)]
        )
    return images


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
