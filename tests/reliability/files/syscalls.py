"""The system calls by which a process changes files, each seen before it happens.

A fork installs a seccomp filter whose listener (``SECCOMP_RET_USER_NOTIF``, Linux 5.5) is the
process that started it: it lets a call go on, has it fail with an error of the system, or kills the
process before it. So the k-th call fails, or is the last, for every k, whatever library makes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.reliability.files.box import forked

__all__ = ["KILL", "Call", "Outcome", "supervise", "unavailable"]

KILL = -1
"""Answer by which a process is killed before a call."""

_AT_FDCWD, _WALL_SECONDS = 0xFFFFFF9C, 120
_NR_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _NEW_LISTENER = 317, 38, 1, 8
_ARCH = 0xC000003E  # AUDIT_ARCH_X86_64
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_NOTICE, _CONTINUE = struct.Struct("<QIIiIQ6Q"), 1

# How a call names its file: by descriptor, by path, or by the folder's descriptor and a path.
_CALLS: dict[int, tuple[str, str]] = {
    1: ("write", "fd"), 18: ("write", "fd"), 20: ("write", "fd"), 296: ("write", "fd"),
    328: ("write", "fd"), 40: ("write", "fd"), 326: ("write", "fd2"),
    76: ("truncate", "path"), 77: ("truncate", "fd"), 285: ("truncate", "fd"),
    74: ("fsync", "fd"), 75: ("fsync", "fd"),
    2: ("create", "path"), 85: ("create", "path"), 257: ("create", "at"),
    82: ("rename", "path path"), 264: ("rename", "at at"), 316: ("rename", "at at"),
    86: ("link", "path path"), 265: ("link", "at at"),
    88: ("symlink", "path"), 266: ("symlink", "path"),
    83: ("mkdir", "path"), 258: ("mkdir", "at"), 84: ("remove", "path"), 87: ("remove", "path"),
    263: ("remove", "at"), 90: ("chmod", "path"), 91: ("chmod", "fd"), 268: ("chmod", "at"),
}  # fmt: skip
_OPEN_FLAGS = {2: 24, 257: 32}  # offsets of the flags; what only reads is let through
_FLAGS = {2: 1, 257: 2}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Call(NamedTuple):
    """A call that changes a file.

    Attributes:
        name: "write", "truncate", "fsync", "create", "rename", "link", "symlink", "mkdir",
            "remove", "chmod", or "probe" for a file without a name.
        path: its file.
        target: the new name, of "rename" and "link".
    """

    name: str
    path: str
    target: str = ""


@dataclass
class Outcome:
    """The end of a supervised process.

    Attributes:
        calls: its calls below the folder, in order.
        status: 0, 1 after an error, or minus the number of the signal that ended it.
        error: type and text of its error.
    """

    calls: list[Call] = field(default_factory=list)
    status: int = 0
    error: str = ""


def unavailable() -> str:
    """Why calls cannot be seen here, or an empty text."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"not on {sys.platform} {platform.machine()}"
    try:
        outcome = supervise(lambda: None, Path("/nowhere"), lambda number, call: 0)
    except OSError as error:
        return str(error)
    return outcome.error


def supervise(
    work: Callable[[], object], folder: Path, answer: Callable[[int, Call], int]
) -> Outcome:
    """Run `work` in a fork whose every change below `folder` is asked for.

    Args:
        work: what it does.
        folder: calls elsewhere go on unseen.
        answer: for the number of a call, from 0, and the call: 0 lets it go on, an errno lets it
            fail, ``KILL`` kills the process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = forked(lambda: _watched(work, ours, theirs))
    theirs.close()
    outcome = Outcome()
    try:
        message, descriptors, _, _ = socket.recv_fds(ours, 500, 1)
        if not descriptors:
            outcome.error = message.decode() or "there is no listener"
            return outcome
        (listener,) = descriptors
        try:
            ours.send(b"begin")
            _listen(listener, ours, pid, str(folder) + "/", answer, outcome)
        finally:
            os.close(listener)
    finally:
        ours.close()
        _, status = os.waitpid(pid, 0)
        outcome.status = os.waitstatus_to_exitcode(status)
    return outcome


def _watched(work: Callable[[], object], ours: socket.socket, theirs: socket.socket) -> None:
    ours.close()
    try:
        listener = _install()
    except OSError as error:
        theirs.send(f"seccomp: {error}".encode())
        return
    socket.send_fds(theirs, [b"listener"], [listener])
    theirs.recv(10)
    os.close(listener)
    try:
        work()
    except BaseException as error:
        kinds = ",".join(kind.__name__ for kind in type(error).__mro__)
        theirs.send(f"{kinds}: {error}".encode(errors="replace")[:4000])
        os._exit(1)


def _install() -> int:
    """Install the filter; returns its listener."""
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCH), (_RETURN, 0, 0, _ALLOW)]
    instructions += [(_LOAD, 0, 0, 0)]
    for i, number in enumerate(_CALLS):
        to_notify = len(_CALLS) - i  # the flags of `open` are looked at behind it
        instructions.append((_EQUAL, to_notify + (number in _OPEN_FLAGS), 0, number))
    instructions += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOTIFY)]
    instructions += [(_LOAD, 0, 0, 0), (_EQUAL, 0, 4, 2)]
    for offset in _OPEN_FLAGS.values():
        instructions += [(_LOAD, 0, 0, offset), (_ANY_BIT, 0, 1, _WRITES)]
        instructions += [(_RETURN, 0, 0, _NOTIFY), (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)
    memory = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(
        struct.pack("<HxxxxxxQ", len(instructions), ctypes.addressof(memory)), 16
    )
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = libc.syscall(_NR_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(listener)


def _listen(
    listener: int, report: socket.socket, pid: int, folder: str,
    answer: Callable[[int, Call], int], outcome: Outcome,
) -> None:  # fmt: skip
    events = select.poll()
    events.register(listener, select.POLLIN)
    events.register(report, select.POLLIN)
    while True:
        ready = dict(events.poll(1000 * _WALL_SECONDS))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            outcome.error = "it waits"
            return
        if ready.get(listener, 0) & select.POLLIN:
            if not _next(listener, pid, folder, answer, outcome):
                return
        else:  # it has ended, or says why it ends
            outcome.error = report.recv(4000).decode(errors="replace")
            return


def _next(
    listener: int, pid: int, folder: str, answer: Callable[[int, Call], int], outcome: Outcome
) -> bool:
    """Answer one call; False once the process is killed or gone."""
    notice = bytearray(_NOTICE.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, notice)
    except OSError as error:
        return error.errno == errno.ENOENT  # it was interrupted
    key, thread, _, number, _, _, *arguments = _NOTICE.unpack(notice)
    call = _read(thread, number, arguments)
    decision = 0
    if f"{call.path}/".startswith(folder) or call.target.startswith(folder):
        decision = answer(len(outcome.calls), call)
        outcome.calls.append(call)
    if decision == KILL:
        os.kill(pid, signal.SIGKILL)
        return False
    go_on = 0 if decision else _CONTINUE
    try:
        fcntl.ioctl(listener, _ANSWER, struct.pack("<QqiI", key, 0, -decision, go_on))
    except OSError as error:
        return error.errno == errno.ENOENT
    return True


def _read(thread: int, number: int, arguments: list[int]) -> Call:
    name, kinds = _CALLS[number]
    flags = arguments[_FLAGS[number]] if number in _FLAGS else 0
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        name = "probe"  # a file without a name, in a folder
    if number in (88, 266):  # a link's own name follows what it points to
        arguments = arguments[1:]
        kinds = "at" if number == 266 else "path"
    names = []
    for kind in kinds.split():
        if kind in ("fd", "fd2"):
            descriptor = arguments[2 if kind == "fd2" else 0]
            names.append(_link(thread, f"fd/{descriptor}"))
        else:
            base = "cwd"
            if kind == "at":
                folder, *arguments = arguments
                base = "cwd" if folder & 0xFFFFFFFF == _AT_FDCWD else f"fd/{folder}"
            address, *arguments = arguments
            names.append(
                os.path.normpath(os.path.join(_link(thread, base), _text(thread, address)))
            )
    return Call(name, *names)


def _link(thread: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{thread}/{name}").removesuffix(" (deleted)")
    except OSError:
        return ""


def _text(thread: int, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        content = memory.read(4096 - address % 4096)  # a page may be the last
        if b"\0" not in content:
            content += memory.read(4096)
    return content.partition(b"\0")[0].decode(errors="surrogateescape")
