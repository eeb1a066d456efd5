"""Writers on a file system that is full: a tmpfs in a namespace of mounts of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.reliability.files.place import Place, fork

__all__ = ["exit_with", "fill", "quietly", "unavailable"]

_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000
_REMOUNT, _PRIVATE = 32, 1 << 14 | 1 << 18
_FAILED = 3
_PAGE = 4096


def exit_with(work: Callable[[], object]) -> None:
    """Run `work` at the end of a fork; its status is 0, or 3 after an :class:`OSError`."""
    try:
        work()
    except OSError:
        os._exit(_FAILED)


def quietly(work: Callable[[], object]) -> None:
    """Run `work` at the end of a fork, and say nothing of its errors."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    work()


def unavailable() -> str:
    """Why this process can mount nothing, or an empty text."""
    return "no mounts here" if fork(_probe) else ""


def _probe() -> None:
    with contextlib.suppress(OSError):
        _unshare()
        _mount(Path("/mnt"), _PAGE)
        return
    os._exit(1)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _unshare() -> None:
    """Give this process mounts of its own."""
    flags = _NEW_MOUNTS if os.geteuid() == 0 else _NEW_MOUNTS | _NEW_USERS
    user = os.geteuid()
    _must(_libc().unshare(flags))
    if user:
        Path("/proc/self/uid_map").write_text(f"0 {user} 1\n", encoding="ascii")
    _must(_libc().mount(None, b"/", None, _PRIVATE, None))


def _mount(folder: Path, size: int, flags: int = 0) -> None:
    options = f"size={-(-size // _PAGE) * _PAGE}".encode()
    _must(_libc().mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options))


def _must(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fill(place: Place, shares: Sequence[float], size: int) -> None:
    """Write state 1 where a disk has room for less.

    Args:
        place: the target, which is mounted over.
        shares: of the room that it needs.
        size: bytes of its files.

    Raises:
        AssertionError: a write ends otherwise than with OSError, or does more than it may.
    """
    for share in shares:
        place.reset()
        what = f"a disk of {share:.3f} of its size"
        status = fork(lambda: _on_full_disk(place, share, size, what))  # noqa: B023
        assert status == 0, f"{place.writer.name}: {what}: see above"


def _on_full_disk(place: Place, share: float, size: int, what: str) -> None:
    _unshare()
    kept = place.folder.with_name("kept")
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(place.folder, kept)
    place.folder.mkdir()
    _mount(place.folder, 1 << 26)
    shutil.copytree(kept, place.folder, dirs_exist_ok=True)
    used = sum(-(-p.stat().st_size // _PAGE) + 1 for p in place.folder.rglob("*"))
    room = max(1, round(share * (2 + -(-size // _PAGE))))
    _mount(place.folder, (used + room) * _PAGE, _REMOUNT)
    status = fork(lambda: exit_with(place.write))
    assert status in (0, _FAILED), f"{place.writer.name}: {what}: status {status}"
    place.check(what)
    assert not place.stubs(), f"{place.writer.name}: {what}: {place.stubs()} is left"
    _mount(place.folder, 1 << 26, _REMOUNT)
    place.recover(what)
