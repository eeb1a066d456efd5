"""Files in tar archives by their offsets, without unpacking."""

from __future__ import annotations

import glob
import itertools
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from bitdance.io.files import one_line
from bitdance.io.image_files import ImageError, printable

__all__ = ["Archive", "Member", "expand_pattern", "is_archive"]

_MAX_ARCHIVES = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_BLOCK = 512


class Archive:
    """An uncompressed tar archive, read at offsets: safe for threads and forked processes.

    Args:
        path: the archive.

    Raises:
        ImageError: it cannot be opened, or is a pipe or device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise ImageError(f"{printable(path)} cannot be opened: {one_line(error)}") from error
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):  # a pipe would be waited for
            raise ImageError(f"{printable(path)} is not a tar archive but no regular file")

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the archive.

        Raises:
            ImageError: it has become shorter, or cannot be read.
        """
        parts = []
        try:
            while size and (part := os.pread(self._descriptor, size, offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        except OSError as error:
            raise ImageError(f"{printable(self.path)}: {error.strerror}") from error
        if size:
            raise ImageError(f"{printable(self.path)} is truncated")
        return b"".join(parts)

    def members(self) -> Iterator[Member]:
        """Regular files of the archive, in its order; those of archives in it, in their place.

        An inner archive is a folder of its name without ".tar".

        Raises:
            ImageError: the archive is damaged, truncated or compressed, or has an unsafe name;
                members before that have been returned.
        """
        with open(self.path, "rb") as file:
            yield from self._members(file, "", 0, printable(self.path))

    def _members(self, file: IO[bytes], prefix: str, start: int, title: str) -> Iterator[Member]:
        try:
            if file.read(2) == b"\x1f\x8b":
                raise ImageError(f"{title} is compressed: decompress it, to read it by offsets")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (found := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # otherwise all are kept in memory
                    name = _safe(found.name, title)
                    if found.isdir():
                        continue
                    inner = tar.extractfile(found) if _is_inner(found, prefix) else None
                    if inner is not None:
                        folder = f"{name.removesuffix('.tar')}/"
                        inner_start = start + found.offset_data
                        yield from self._members(inner, folder, inner_start, f"{title}/{name}")
                        continue
                    plain = found.isreg() and not found.issparse()
                    offset = start + found.offset_data
                    yield Member(self, prefix + name, offset, found.size, plain)
                # An invalid header ends an archive as its end does.
                file.seek(tar.offset)
                if file.read(_BLOCK).strip(b"\0") or file.tell() < tar.offset + _BLOCK:
                    raise ImageError(f"{title} is damaged or truncated at byte {tar.offset}")
        except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{title} is not a complete tar archive: {one_line(error)}") from error


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        archive: the archive.
        name: path in it.
        offset: offset of its first byte.
        size: number of its bytes.
        is_plain: whether these bytes are its content: it is no link, device or sparse file.
    """

    archive: Archive
    name: str
    offset: int
    size: int
    is_plain: bool = True

    def read(self) -> bytes:
        """The content.

        Raises:
            ImageError: the archive has become shorter, or cannot be read.
        """
        return self.archive.read(self.offset, self.size)

    def title(self) -> str:
        """Name for messages."""
        return printable(f"{self.archive.path}/{self.name}")


def is_archive(path: str | Path) -> bool:
    """Whether a path names tar archives: a file, or a pattern."""
    return os.fspath(path).endswith(".tar") and not os.path.isdir(path)


def expand_pattern(path: str | Path) -> list[Path]:
    """The archives that a path names, in order.

    Args:
        path: a file, or a pattern with braces ("{000..127}", "{a,b}") or wildcards (*, ?, [...]).

    Raises:
        FileNotFoundError: one does not exist, or none fits.
        ValueError: braces stand for too many names.
    """
    text = os.fspath(path)
    if os.path.exists(text):
        return [Path(text)]
    found: list[Path] = []
    for name in _expand_braces(text):
        names = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        found += [Path(name) for name in names if os.path.exists(name)]
        if not names or not os.path.exists(names[0]):
            raise FileNotFoundError(f"there is no archive {printable(name)}")
    return found


def _expand_braces(text: str) -> list[str]:
    parts = _BRACES.split(text)
    choices = [[part] if i % 2 == 0 else _alternatives(part, text) for i, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MAX_ARCHIVES:
        raise ValueError(f"{printable(text)} must name at most {_MAX_ARCHIVES} archives")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _alternatives(inside: str, text: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",")
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _MAX_ARCHIVES:
        raise ValueError(
            f"{printable(text)} must count up to at most {_MAX_ARCHIVES} archives, got {inside}"
        )
    return [str(number).zfill(len(match[1])) for number in range(first, last + 1)]


def _is_inner(found: tarfile.TarInfo, prefix: str) -> bool:
    """Whether a member is an archive whose members are listed; of one level."""
    return not prefix and found.isreg() and found.name.endswith(".tar")


def _safe(name: str, title: str) -> str:
    """The path of a member, without "./" in front.

    Raises:
        ImageError: it leads out of the archive, or is no path.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not name:
        raise ImageError(f"{title} has a member with an unsafe name: {printable(name)!r}")
    return str(path)
