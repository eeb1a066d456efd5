"""Labeled images from IDX files or from folders of image files."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from PIL import Image

from bitdance.data.crops import CropDraw, center_crop, random_crop
from bitdance.data.idx import IdxImages, is_idx
from bitdance.data.image_folders import (
    FoundImages,
    Split,
    find_images,
    find_labeled_images,
    find_split,
)
from bitdance.data.tar_images import find_archived_images
from bitdance.data.tar_index import Member, is_archive
from bitdance.io.image_files import ImageError, decode_image, parse_color, printable, read_image
from bitdance.io.progress import progress_bar
from bitdance.io.validation import exact_int

__all__ = ["FileImages", "IdxImages", "LabeledImages", "iterate_batches", "open_images", "to_float"]

OnError = Literal["raise", "check", "skip"]
_LOG = logging.getLogger(__name__)


class LabeledImages(Protocol):
    """A data set of square images with labels.

    Attributes:
        labels: int64 [N], classes of the images.
        classes: names of the classes.
        size: pixels a side.
        source: height and width of the part of an image that is not padding.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    size: int
    source: tuple[int, int]

    def __len__(self) -> int: ...

    def identity(self) -> str:
        """A checksum of the data, independent of their path."""
        ...

    def take(
        self, indices: np.ndarray, crops: Sequence[CropDraw | None] | None = None
    ) -> torch.Tensor:
        """Images by number, uint8 [n, 3, size, size].

        Args:
            indices: numbers of the images.
            crops: for each image the draw of its random crop, or None for its middle; by default
                the middle of all.
        """
        ...


def open_images(
    path: str | Path, size: int, *, split: Split = "train", classes: Sequence[str] = (),
    labeled: bool = True, background: str = "white", on_error: OnError = "raise",
) -> LabeledImages:  # fmt: skip
    """Open a data set of images.

    Args:
        path: a folder with IDX files ("train-images-idx3-ubyte", "t10k-...", perhaps with ".gz"),
            or with image files; a ".tar" archive of them, or a pattern of archives; see
            ``FileImages``.
        size: pixels a side of the images to return.
        split: "train" or "test".
        classes: names of the classes of IDX files; for image files, the class folders to use, in
            this order.
        labeled: whether classes are needed; see ``FileImages``.
        background: color behind transparent pixels.
        on_error: how to treat files that cannot be read: "raise", "check" or "skip".

    Raises:
        FileNotFoundError: there is no such folder, or there are no images in it.
        ImageError: a file is damaged.
        ValueError: names and labels do not fit.
    """
    folder = Path(path)
    size = exact_int("open_images", "size", size, minimum=1)
    if split not in get_args(Split):
        raise ValueError(f"open_images: split must be 'train' or 'test', got {split!r}")
    if not folder.is_dir() and not is_archive(folder):
        raise FileNotFoundError(f"{printable(folder)} is not a folder of images, or a .tar archive")
    if is_idx(folder):
        for name, value, unused in (
            ("background", background, "white"), ("on_error", on_error, "raise")
        ):  # fmt: skip
            if value != unused:
                raise ValueError(
                    f"open_images: {name} must be left out for IDX files, got {value!r}"
                )
        return IdxImages(folder, size, split, classes)
    return FileImages(
        folder, size, split, classes=classes, labeled=labeled, background=background,
        on_error=on_error,
    )  # fmt: skip


class FileImages:
    """The image files of a folder or of tar archives, which are read when they are used.

    Args:
        folder: folder as for ``find_labeled_images``, or archives as for ``find_archived_images``.
        size: pixels a side: images are resized so that the shorter side has them, then cropped;
            see ``bitdance.data.crops``.
        split: "train" or "test".
        classes: names of the class folders to use, in this order.
        labeled: False uses all images of the split, whatever folders they are in, as one unnamed
            class, unless `classes` chooses some.
        background: color behind transparent pixels.
        on_error: "raise": a file that cannot be read raises when it is used; one that must not be
            opened (a pipe, a broken link) raises now. "check": all files are read now. "skip": the
            same, and those that cannot be read are skipped.

    Skipped files are logged as a warning, with counts.

    Raises:
        FileNotFoundError: there is no such split, or no image in it.
        ImageError: a file must not be opened, or with "check" cannot be read.
        ValueError: the splits have different classes, `classes` are not those of the folder, or an
            argument is out of range.
    """

    def __init__(
        self, folder: Path, size: int, split: Split = "train", *, classes: Sequence[str] = (),
        labeled: bool = True, background: str = "white", on_error: OnError = "raise",
    ) -> None:  # fmt: skip
        if on_error not in get_args(OnError):
            raise ValueError(
                f"FileImages: on_error must be one of {', '.join(get_args(OnError))}, got "
                f"{on_error!r}"
            )
        parse_color(background)
        self.size, self._background = size, background
        self._pools: dict[int, ThreadPoolExecutor] = {}
        found: FoundImages[Any]
        if is_archive(folder):
            found = find_archived_images(folder, split, classes, labeled=labeled)
        elif labeled or classes:
            found = find_labeled_images(folder, split, classes)
        else:
            found = find_images(find_split(folder, split))
        if on_error != "raise":
            self._check(found)
        if found.refused and on_error != "skip":
            more = f" (and {len(found.refused) - 1} more)" if len(found.refused) > 1 else ""
            raise ImageError(f"{found.refused[0]}{more}")
        skipped = found.describe_skipped()
        if skipped:
            _LOG.warning("%s: %d images; skipped: %s", folder, len(found.files), skipped)
        if not found.files:
            raise FileNotFoundError(f"{printable(folder)} has no images")
        self._files: Sequence[Path | Member] = found.files
        self.labels = np.array(found.labels, np.int64)
        self.classes = found.classes
        self.source = (size, size)

    def __len__(self) -> int:
        return len(self.labels)

    def identity(self) -> str:
        """Checksum of the files' names, sizes and labels, but not their content."""
        digest = hashlib.sha256()
        paths = [file.parent for file in self._files if isinstance(file, Path)]
        root = os.path.commonpath(paths) if paths else ""
        for file, label in zip(self._files, self.labels.tolist(), strict=True):
            if isinstance(file, Path):
                name, size = os.path.relpath(file, root), file.stat().st_size
            else:
                name, size = f"{file.archive.path.name}/{file.name}", file.size
            digest.update(os.fsencode(f"{name}\0{size}\0{label}\0"))
        return digest.hexdigest()

    def take(
        self, indices: np.ndarray, crops: Sequence[CropDraw | None] | None = None
    ) -> torch.Tensor:
        """Images by number, uint8 [n, 3, size, size].

        Args:
            indices: numbers of the images.
            crops: draw of each random crop, or None for the middle; by default all None.

        Raises:
            ImageError: a file cannot be read.
        """
        files = [self._files[index] for index in indices.tolist()]
        draws = [None] * len(files) if crops is None else crops
        return torch.stack(list(self._threads().map(self._read, files, draws)))

    def _threads(self) -> ThreadPoolExecutor:
        """Threads to decode with; a forked process gets its own."""
        if os.getpid() not in self._pools:
            self._pools = {os.getpid(): ThreadPoolExecutor(8)}
        return self._pools[os.getpid()]

    def _read(self, file: Path | Member, crop: CropDraw | None) -> torch.Tensor:
        image = _load(file, self._background)
        square = (
            center_crop(image, self.size, self.size)
            if crop is None
            else random_crop(image, self.size, crop)
        )
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()

    def _check(self, found: FoundImages[Any]) -> None:
        """Read all files, and move those that fail to the refused ones."""
        errors = list(self._threads().map(self._try_to_read, found.files))
        found.refused += [error for error in errors if error]
        intact = [i for i, error in enumerate(errors) if not error]
        found.files = [found.files[i] for i in intact]
        found.labels = [found.labels[i] for i in intact]

    def _try_to_read(self, file: Path | Member) -> ImageError | None:
        try:
            _load(file, self._background)
        except ImageError as error:
            return error
        return None


def _load(file: Path | Member, background: str) -> Image.Image:
    if isinstance(file, Path):
        return read_image(file, background=background)
    return decode_image(file.read(), file.title(), background=background)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def iterate_batches(
    images: LabeledImages, device: torch.device, items: np.ndarray | None = None, *,
    batch_size: int = 250, desc: str = "", progress: bool = False,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Batches of images, float32 [B, 3, H, W] in [-1, 1].

    Args:
        images: the data set.
        device: device of the batches.
        items: numbers of the images, by default all in order.
        batch_size: largest number of images in a batch.
        desc: title of the progress bar.
        progress: show a progress bar.
    """
    items = np.arange(len(images)) if items is None else items
    parts = np.array_split(items, -(-len(items) // batch_size))
    for part in progress_bar(parts, desc=desc, disable=not progress):
        yield to_float(images.take(part)).to(device)
