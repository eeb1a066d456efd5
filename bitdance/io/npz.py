"""``.npz`` files of images, written and read a part at a time.

``arr_0`` holds uint8 [N, H, W, 3] and ``arr_1`` int64 [N], the layout that the evaluation suite of
ADM (Dhariwal and Nichol 2021) takes; ``numpy.load`` reads them too.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from bitdance.io.files import CheckpointError, one_line, replace_file, require_file

__all__ = ["ImageArray", "NpzError", "has_images", "read_arrays", "write_array", "write_images"]

_CHUNK = 1 << 24  # bytes that are skipped at a time in a compressed member
_MAX_SMALL = 1 << 29  # bytes of an array that is read at once: 8,192 features have as many


class NpzError(ValueError):
    """A file is not an ``.npz`` file of images."""


def write_images(
    path: Path, blocks: Iterable[np.ndarray], labels: np.ndarray, size: Sequence[int]
) -> None:
    """Write images and labels, completely or not at all, with the memory of one block.

    Args:
        path: the file.
        blocks: uint8 [n, H, W, 3] each, as many images in all as there are labels.
        labels: int64 [N].
        size: H and W.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        ValueError: the blocks have other shapes or another number of images.
    """
    shape = (len(labels), *size, 3)
    with replace_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with _member(archive, "arr_0") as file:
            _write_header(file, np.dtype(np.uint8), shape)
            count = 0
            for block in blocks:
                if block.dtype != np.uint8 or block.shape[1:] != shape[1:]:
                    raise ValueError(
                        f"write_images: blocks must be uint8 {['n', *shape[1:]]}, got "
                        f"{block.dtype} {list(block.shape)}"
                    )
                file.write(np.ascontiguousarray(block).data)
                count += len(block)
        if count != len(labels):
            raise ValueError(
                f"write_images: blocks must have {len(labels)} images, got {count}"
            )  # fmt: skip
        with _member(archive, "arr_1") as file:
            numbers = np.ascontiguousarray(labels, "<i8")
            _write_header(file, numbers.dtype, numbers.shape)
            file.write(numbers.data)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A member to write, not compressed; without a date, so that equal images are equal files."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def _write_header(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    header: Any = {
        "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape,
    }  # fmt: skip
    np.lib.format.write_array_header_1_0(file, header)


def write_array(file: IO[bytes], array: np.ndarray) -> None:
    """Write an array as ``numpy.save`` does, which loses the errors of small arrays' writes.

    Raises:
        OSError: the disk is full, which may be noticed when `file` is flushed.
    """
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array.data)


class ImageArray:
    """The images of an ``.npz`` file, read a part at a time, forwards.

    Args:
        path: file with uint8 [N, H, W, 3] as ``arr_0``, or as its only array of this kind.

    Attributes:
        shape: N, H, W, 3.

    Raises:
        FileNotFoundError: there is no such file.
        NpzError: it is damaged, or has no such array.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._archive = _open(path)
        name = _name(self._archive, path)
        try:
            self._file = self._archive.open(name)
            self.shape, dtype, fortran = read_header(self._file)
            if fortran:
                raise ValueError("its order is Fortran's")
        except Exception as error:  # archives and headers can be damaged in many ways
            self._archive.close()
            raise NpzError(f"{path}: {name} is damaged: {one_line(error)}") from error
        if dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] != 3:
            self._archive.close()
            raise NpzError(
                f"{path}: {name} must be uint8 [N, H, W, 3], got {dtype} {list(self.shape)}"
            )
        self._image_bytes = math.prod(self.shape[1:])
        # The checksum is compared at the end of the member, which must be that of the images.
        expected = self._file.tell() + self.shape[0] * self._image_bytes
        size = self._archive.getinfo(name).file_size
        if size != expected:
            self._archive.close()
            raise NpzError(
                f"{path}: {name} must have {expected} bytes for {list(self.shape)}, got {size}"
            )
        self._next = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __enter__(self) -> ImageArray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._archive.close()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Images `start` to `stop`, uint8 [n, H, W, 3]; `start` is not before an earlier `stop`.

        Raises:
            NpzError: the file is truncated or altered.
        """
        if not self._next <= start <= stop <= len(self):
            raise ValueError(
                f"read: start and stop must be from {self._next} to {len(self)}, got {start} and "
                f"{stop}"
            )
        try:
            self._skip((start - self._next) * self._image_bytes)
            size = (stop - start) * self._image_bytes
            data = self._file.read(size)
        except Exception as error:  # decompression can fail in many ways
            raise NpzError(f"{self._path} is damaged: {one_line(error)}") from error
        if len(data) != size:
            raise NpzError(f"{self._path} ends within image {start + len(data) // max(size, 1)}")
        self._next = stop
        return np.frombuffer(data, np.uint8).reshape(stop - start, *self.shape[1:])

    def _skip(self, count: int) -> None:
        while count > 0:
            count -= len(self._file.read(min(count, _CHUNK))) or count


def has_images(path: Path) -> bool:
    """Whether an ``.npz`` file has an array ``arr_0``.

    Raises:
        FileNotFoundError: there is no such file.
        NpzError: it is no such file.
    """
    with _open(path) as archive:
        return "arr_0.npy" in archive.namelist()


def read_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray] | None:
    """Small arrays of an ``.npz`` file by their names; None if it lacks one of them.

    Raises:
        FileNotFoundError: there is no such file.
        NpzError: it is damaged.
    """
    with _open(path) as archive:
        members = {name.removesuffix(".npy") for name in archive.namelist()}
        if not members.issuperset(names):
            return None
        for name in names:
            _check_small(archive, f"{name}.npy", path)
    try:
        with np.load(path, allow_pickle=False) as content:
            return [content[name] for name in names]
    except Exception as error:  # NumPy reads headers as Python, which can fail in many ways
        raise NpzError(f"{path} is damaged: {one_line(error)}") from error


def _check_small(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Check that an array has the size that its header says, before memory is taken for it.

    Raises:
        NpzError: it has another, or is too large.
    """
    try:
        info = archive.getinfo(name)
        with archive.open(info) as file:
            shape, dtype, _ = read_header(file)
            expected = file.tell() + math.prod(shape) * dtype.itemsize
    except Exception as error:  # archives and headers can be damaged in many ways
        raise NpzError(f"{path}: {name} is damaged: {one_line(error)}") from error
    if info.file_size != expected or expected > _MAX_SMALL:
        raise NpzError(
            f"{path}: {name} must have {expected} bytes for {list(shape)}, at most {_MAX_SMALL}, "
            f"got {info.file_size}"
        )


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(require_file(path))
    except FileNotFoundError:
        raise
    except CheckpointError as error:
        raise NpzError(str(error)) from None
    except Exception as error:  # a damaged directory can raise many errors
        raise NpzError(f"{path} is not a complete .npz file: {one_line(error)}") from error


def _name(archive: zipfile.ZipFile, path: Path) -> str:
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if "arr_0.npy" in names:
        return "arr_0.npy"
    if len(names) != 1:
        listed = ", ".join(name.removesuffix(".npy") for name in names[:5]) or "none"
        raise NpzError(f"{path} must have an array arr_0, or only one array, got {listed}")
    return names[0]


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, dtype and whether the order is that of Fortran, of a ``.npy`` file from its beginning.

    Raises:
        ValueError: it has no such header.
    """
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)  # fmt: skip
    if read is None:
        raise ValueError(f"its format has version {version}")
    shape, fortran, dtype = read(file)
    return shape, dtype, fortran
