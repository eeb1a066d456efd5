"""What a process holds, and whether it grows with the number of calls.

A point is taken after garbage collection and after malloc has returned what it does not use. The
growth of a run is the sum of what its intervals add but for the largest: a buffer that grows once
is in one interval, and a leak is in all.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a process holds.

    Attributes:
        memory: bytes of pages that are this process's own, not those of files. (Neither the
            resident nor the unique set size will do: code is counted by whether another process
            has loaded the same library.)
        heap: bytes that malloc has given out, to the byte.
        blocks: memory blocks of Python's own allocator.
        objects: objects that the garbage collector knows, but for those it has set aside.
        files: open file descriptors.
        threads: threads of the system.
    """

    memory: float
    heap: float
    blocks: float
    objects: float
    files: float
    threads: float


ALLOWED = Usage(memory=2**20, heap=2**16, blocks=500, objects=200, files=0.5, threads=0.5)
"""Growth over a whole run that is noise, however many calls it has.

Over 5,000 calls a leak of 14 bytes of the heap a call is more than that, or of a Python object in
ten calls, or of a file in 10,000; memory that is mapped past malloc is seen from 210 bytes a call
on, since the system counts it in pages. Over 500,000 calls it is a hundredth of these.
"""


class Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def usage() -> Usage:
    """What this process holds now.

    Raises:
        OSError: the system is no Linux with glibc 2.33 or later.
    """
    for _ in range(2):  # what a finalizer frees, too
        gc.collect()
    try:
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = Mallinfo
        libc.malloc_trim(0)
        heap = libc.mallinfo2()
    except AttributeError as error:
        raise OSError("usage: needs malloc_trim and mallinfo2 of glibc 2.33 or later") from error
    return Usage(
        memory=_anonymous(), heap=heap.uordblks + heap.hblkhd, blocks=sys.getallocatedblocks(),
        objects=len(gc.get_objects()), files=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
    )  # fmt: skip


def is_available() -> bool:
    """Whether this system can tell."""
    libc = ctypes.CDLL(None)
    return hasattr(libc, "mallinfo2") and Path("/proc/self/smaps_rollup").exists()


def _anonymous() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(size) for name, size, *_ in (line.split() for line in lines)}
    return 1024 * (sizes["Anonymous:"] + sizes["Swap:"])


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """A context for points: objects from before are set aside, so that collections take little."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Watch:
    """Points of a run, three at least.

    Args:
        what: the run, for messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.points: list[tuple[int, Usage]] = []

    def take(self, calls: int) -> None:
        """Take a point after so many calls."""
        self.points.append((calls, usage()))

    def growth(self) -> Usage:
        """The growth over the calls between the first point and the last."""
        usages = [usage for _, usage in self.points]

        def grown(name: str) -> float:
            added = [getattr(b, name) - getattr(a, name) for a, b in itertools.pairwise(usages)]
            return (sum(added) - max(added)) * len(added) / (len(added) - 1)

        return Usage(**{name: grown(name) for name in asdict(ALLOWED)})

    def check(self) -> None:
        """Check that nothing has grown.

        Raises:
            AssertionError: with what has, by how much a call, and all points.
        """
        calls, grown = self.points[-1][0] - self.points[0][0], asdict(self.growth())
        allowed = asdict(ALLOWED)
        found = [
            f"{name} by {grown[name] / calls:.4g} a call ({grown[name]:.0f} in all, "
            f"{allowed[name]:g} allowed)"
            for name in allowed
            if grown[name] > allowed[name]
        ]
        if found:
            points = "\n".join(f"  after {i}: {point}" for i, point in self.points)
            raise AssertionError(
                f"{self.what}: over {calls} calls grew {', '.join(found)}\n{points}"
            )


def flat(
    what: str, action: Callable[[int], object], calls: int, *, warm_up: int, points: int = 9
) -> int:
    """Check that ``action(0)``, ``action(1)``, ... leave nothing behind.

    Args:
        what: the run, for messages.
        action: one call, whose result is dropped.
        calls: how many are watched.
        warm_up: how many come before, in which caches fill.
        points: number of points.

    Returns:
        The number of calls that were watched.

    Raises:
        AssertionError: memory, objects, files or threads grow.
    """
    watch = Watch(what)
    for i in range(warm_up):
        action(i)
    with settled():
        watch.take(0)
        for point in range(1, points):
            for i in range(calls * (point - 1) // (points - 1), calls * point // (points - 1)):
                action(warm_up + i)
            watch.take(calls * point // (points - 1))
    watch.check()
    return calls
