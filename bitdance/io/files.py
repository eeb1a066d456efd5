"""Files that are written completely or not at all.

They are written in temporary folders, which are locked while their process lives. A folder that is
not locked was left by a killed process, and the next process that writes beside it removes it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # this system has no such locks: leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "CheckpointError",
    "NoModelError",
    "lock",
    "locked",
    "make_locked_folder",
    "one_line",
    "publish",
    "read_consistently",
    "remove_leftovers",
    "replace_file",
    "require_file",
    "sha256",
    "sync",
    "temporary_file",
    "umask",
    "unlock",
    "write_text",
]

_SUFFIX = ".bitdance.tmp"
_LEFTOVER = re.compile(rf"\..*\.[a-z0-9_]{{8}}{re.escape(_SUFFIX)}")
_MAX_LENGTH = 500  # characters of an error message of other libraries
_UMASK_LOCK = threading.Lock()

T = TypeVar("T")


class CheckpointError(ValueError):
    """A file is not a usable checkpoint, or does not fit the model; nothing was loaded."""


class NoModelError(CheckpointError):
    """Files do not contain a class-conditional model; they may contain something else."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."


def require_file(path: Path) -> Path:
    """Return `path` if it is a file or a link to one.

    Raises:
        FileNotFoundError: there is nothing, or a broken link.
        CheckpointError: it is something else, such as a pipe, which may never end.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe, a socket or a device"
        raise CheckpointError(f"{path} must be a file, got {kind}")
    return path


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` on success.

    On any error, such as a full disk, the temporary file is removed and `path` is unchanged.

    Raises:
        OSError: the folder cannot be written, or `path` is not a file.
    """
    with temporary_file(path) as temporary:
        yield temporary
        publish(temporary, path)


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield a path in a locked temporary folder beside `path`; the folder is removed at the end.

    The folder is locked rather than the file, which writers may replace, as safetensors does.

    Raises:
        OSError: the folder cannot be written, or `path` is not a file.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} exists and is not a file")
    _tidy(path.parent.absolute())
    folder, descriptor = make_locked_folder(path, _SUFFIX)
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        unlock(descriptor)


@functools.lru_cache(maxsize=1024)
def _tidy(folder: Path) -> None:
    """Remove leftovers, once in a process: a folder may have thousands of files, written in turn.

    Errors are left to the writer, which meets them too.
    """
    with contextlib.suppress(OSError):
        remove_leftovers(folder)


def make_locked_folder(path: Path, suffix: str) -> tuple[Path, int | None]:
    """Create a folder with a unique name beside `path`; returns it and its lock."""
    while True:
        prefix = f".{path.name[:100]}."
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=path.parent))
        try:
            descriptor = lock(folder, wait=True)
        except FileNotFoundError:  # removed as a leftover before it was locked
            continue
        if folder.exists():
            return folder, descriptor
        unlock(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Sync a temporary file to the disk and rename it to `path`.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    sync(temporary)
    # Libraries may create files that only their owner can read.
    temporary.chmod(0o666 & ~umask())
    temporary.replace(path)
    sync(path.parent)


def remove_leftovers(folder: Path, pattern: re.Pattern[str] = _LEFTOVER) -> None:
    """Remove the temporary folders in `folder` that killed processes have left.

    Args:
        folder: where they were created.
        pattern: pattern of their names, by default those of ``replace_file``.
    """
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                descriptor = lock(path, wait=False)
                if descriptor is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    unlock(descriptor)


def lock(path: Path, *, wait: bool) -> int | None:
    """Lock a file or folder until `unlock`, or until the process ends.

    Returns:
        A file descriptor; None if there are no locks here, or another process has this one.

    Raises:
        OSError: `path` cannot be opened.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder, after waiting for other processes."""
    descriptor = lock(path, wait=True)
    try:
        yield
    finally:
        unlock(descriptor)


def read_consistently(folder: Path, read: Callable[[], T]) -> T:
    """Call `read`, which reads files of `folder` that other processes may replace meanwhile.

    What fails is read once more while no writer may replace it, so that a reader meets at most one
    writer, however many there are.

    Raises:
        CheckpointError, FileNotFoundError: `read` raises them then too, or `folder` cannot be
            locked.
    """
    try:
        return read()
    except (CheckpointError, FileNotFoundError):
        # Without the right to list it a folder cannot be opened, though its files can.
        if not (folder.is_dir() and os.access(folder, os.R_OK)):
            raise
    with locked(folder):
        return read()


def unlock(descriptor: int | None) -> None:
    """Release a lock."""
    if descriptor is not None:
        os.close(descriptor)


def umask() -> int:
    """The permissions that new files do not get."""
    with _UMASK_LOCK:  # reading it sets it: two threads at once could leave it at 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Sync the content of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file, completely or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
