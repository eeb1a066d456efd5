"""The lock of a folder that one run at a time writes to."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "FolderLock"]

LOCK = ".lock"
"""Name of the lock file."""

_MAX_BYTES = 4096
"""Of a lock file that are read; one of this library has fewer."""


class FolderLock:
    """Lock of an existing folder until it is released, collected, or the process ends.

    A file names the owner's machine and process. What a killed process of this machine has left
    does not count; of another machine, whose processes cannot be seen from here, it does.

    Args:
        folder: the folder.

    Raises:
        OSError: another run has the lock, or the lock file cannot be written or is no file.
    """

    def __init__(self, folder: Path) -> None:
        descriptor = _lock(folder / LOCK)
        self.release = weakref.finalize(self, _unlock, descriptor, folder / LOCK)


def _lock(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            new = True
        except FileExistsError:
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            new = False
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path} must be a file; a pipe or a device cannot be a lock")
            if _acquire(descriptor, path, new):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, new: bool) -> bool:
    """Whether the file is ours now; False to try again, once it is out of the way."""
    by_system = _lock_by_system(descriptor, path)
    with contextlib.suppress(FileNotFoundError):
        if not os.path.samestat(os.stat(path), os.fstat(descriptor)):
            return False  # the previous owner has removed the file meanwhile
        if new:
            owner = {"host": socket.gethostname(), "pid": os.getpid()}
            try:
                os.write(descriptor, json.dumps(owner).encode())
                os.fsync(descriptor)
            except BaseException:
                path.unlink()
                raise
            return True
        owner = _owner(descriptor)
        here = owner.get("host") == socket.gethostname()
        alive = not by_system and _is_alive(owner.get("pid"))
        if (owner and not here) or alive:
            raise OSError(_in_use(path, owner))
        path.unlink()
    return False


def _lock_by_system(descriptor: int, path: Path) -> bool:
    """Lock the file for as long as this process lives; False on a disk without locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(_in_use(path, _owner(descriptor))) from error
    except OSError:
        return False
    return True


def _owner(descriptor: int) -> dict[str, object]:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        owner = json.loads(os.read(descriptor, _MAX_BYTES))
    except (OSError, ValueError, RecursionError):  # not yet written, or of others
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_alive(pid: object) -> bool:
    """Whether a process of this machine lives; True where that cannot be told."""
    if os.name != "posix" or not isinstance(pid, int) or pid < 1:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _in_use(path: Path, owner: dict[str, object]) -> str:
    host, pid = owner.get("host"), owner.get("pid")
    if host is None:
        return f"{path.parent} is in use by another run"
    return (
        f"{path.parent} is in use by another run, process {pid} of {host}; if that has ended, "
        f"delete {path.name} there"
    )


def _unlock(descriptor: int, path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    os.close(descriptor)
