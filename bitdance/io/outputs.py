"""Files that a command writes: checked before the work, written completely or not at all."""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bitdance.io.files import replace_file
from bitdance.io.npz import write_array

__all__ = [
    "IMAGE_SUFFIXES",
    "check_file",
    "check_folder",
    "image_fits",
    "output_paths",
    "save_array",
    "save_image",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MAX_SIDE = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}  # limits of the formats
_MAX_PIXELS = 2**28


def check_file(path: Path) -> None:
    """Check that a file can be written; nothing is left behind.

    Raises:
        OSError: it cannot.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} exists and is not a file")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Check that files can be written into a folder, which need not exist.

    Raises:
        OSError: they cannot.
    """
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise NotADirectoryError(f"{path} exists and is not a folder")
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def image_fits(path: Path, width: int, height: int) -> bool:
    """Whether an image file of this name can have so many pixels."""
    side = max(width, height)
    return side <= _MAX_SIDE.get(path.suffix.lower(), 65535) and width * height <= _MAX_PIXELS


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format of the path's suffix; missing folders are created.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        image.save(temporary, format=Image.registered_extensions()[path.suffix.lower()])


def save_array(array: np.ndarray, path: Path) -> None:
    """Write a ``.npy`` file; missing folders are created.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        write_array(file, array)


def output_paths(paths: Sequence[Path], folder: Path, suffix: str) -> dict[Path, Path]:
    """A file of its own in `folder` for each input path; no output replaces an input."""
    taken = {_canonical(path) for path in paths}
    targets = {}
    for path in paths:
        target, count = folder / f"{path.stem}{suffix}", 1
        while _canonical(target) in taken:
            count += 1
            target = folder / f"{path.stem}-{count}{suffix}"
        taken.add(_canonical(target))
        targets[path] = target
    return targets


def _canonical(path: Path) -> str:
    """Equal for names that some file system treats as the same."""
    return unicodedata.normalize("NFC", str(path.resolve())).casefold()
