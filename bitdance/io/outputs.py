"""Files that a command writes: checked before the work, whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from bitdance.io import weights

__all__ = ["check_file", "check_folder", "save_image"]


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


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format that the ending names; missing folders are made.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with weights.replace_file(path) as temporary:
        image.save(temporary, format=Image.registered_extensions()[path.suffix.lower()])
