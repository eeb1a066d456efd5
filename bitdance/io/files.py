"""Files that appear whole or not at all, and what a killed process left of them.

They are made in temporary folders, which are locked while their process lives. One that nobody
holds any more is a leftover, which the next writer removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system: leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "CheckpointError",
    "NoModelError",
    "lock",
    "locked",
    "locked_folder",
    "one_line",
    "publish",
    "remove_leftovers",
    "replace_file",
    "require_file",
    "sha256",
    "sync",
    "temporary_file",
    "umask",
    "write_text",
]

_SUFFIX = ".bitdance.tmp"
_LEFTOVER = re.compile(rf"\..*\.[a-z0-9_]{{8}}{re.escape(_SUFFIX)}")
_SHOWN = 500  # letters of a foreign error
_UMASK = threading.Lock()


class CheckpointError(ValueError):
    """A file is no usable checkpoint, or does not fit the model; nothing was loaded."""


class NoModelError(CheckpointError):
    """Files are of no class-conditional model; they may be something else."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def require_file(path: Path) -> Path:
    """`path`, which must be a file, or a link to one.

    Raises:
        FileNotFoundError: there is nothing, or a link to nothing.
        CheckpointError: it is something else, such as a pipe or a device, which may never end.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe, a socket or a device"
        raise CheckpointError(f"{path} must be a file, got {kind}")
    return path


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it becomes `path`, whole.

    On any error, a full disk included, the temporary file is removed and `path` is as before.

    Raises:
        OSError: the folder cannot be written, or `path` is something else than a file.
    """
    with temporary_file(path) as temporary:
        yield temporary
        publish(temporary, path)


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, in a locked folder beside `path`, which is removed in the end.

    The lock is the folder's: writers may replace the file by another, as safetensors does.

    Raises:
        OSError: the folder cannot be written, or `path` is something else than a file.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} exists and is not a file")
    folder, held = locked_folder(path, _SUFFIX)
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def locked_folder(path: Path, suffix: str) -> tuple[Path, int | None]:
    """A new folder with a name of its own beside `path`, and its lock."""
    while True:
        prefix = f".{path.name[:100]}."
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=path.parent))
        try:
            held = lock(folder, wait=True)
        except FileNotFoundError:  # somebody took it for a leftover before it was locked
            continue
        if folder.exists():
            return folder, held
        if held is not None:
            os.close(held)


def publish(temporary: Path, path: Path) -> None:
    """Put a temporary file, wholly on the disk, in the place of `path`.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    sync(temporary)
    # mkstemp makes files that only their owner may read.
    temporary.chmod(0o666 & ~umask())
    temporary.replace(path)
    sync(path.parent)


def remove_leftovers(folder: Path, pattern: re.Pattern[str] = _LEFTOVER) -> None:
    """Remove the locked folders in `folder` whose process was killed.

    Args:
        folder: where they were made.
        pattern: of their names; by default of those that ``replace_file`` makes.
    """
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                held = lock(path, wait=False)
                if held is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(held)


def lock(path: Path, *, wait: bool) -> int | None:
    """Lock a file or folder until what is returned is closed, or the process ends.

    Returns:
        A file descriptor; None if locks cannot be had here, or if another process has this one.

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
    """Hold the lock of a file or folder, waiting for whoever has it."""
    held = lock(path, wait=True)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def umask() -> int:
    """The permissions that new files must not have."""
    with _UMASK:  # it can only be read by setting it: two threads at once could leave it at 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Have the disk hold what was written (on a folder: its list of names)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
