"""Writes that fail: at every system call, on a full disk, and without memory.

For every k, the k-th call by which a writer changes a file fails with EIO, and then all from the
k-th on with ENOSPC. The writer raises :class:`OSError`, or has written all; the old file is kept;
no temporary file is left; the next call succeeds. The same holds on a file system that becomes full
(a tmpfs of 20 sizes, where this process may mount one, and a limit of file sizes of 20 sizes), and
where memory is short (20 limits of address space, and 20 allocations of Python that fail), except
that a process without memory may end in any way.

The trace of an undisturbed write shows that each file is synced before it gets its name, and the
folder afterwards. What a disk does with what is synced is not looked at.
"""

from __future__ import annotations

import errno
import random
import resource
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.reliability.files import full_disk, syscalls
from tests.reliability.files.box import scratch, staged
from tests.reliability.files.place import Place, fork, is_temporary
from tests.reliability.files.syscalls import Call
from tests.reliability.files.writers import warm, writers
from tests.reliability.promise import Promise

__all__ = ["PROMISES", "fail", "measure", "unsynced"]

PROMISES = (
    Promise(
        "failing calls, %", "A failing system call, whichever it is, raises OSError and changes "
        "nothing that was there", 100, "%", "nightly",
    ),
    Promise(
        "sizes of a full disk", "A full disk raises OSError, keeps the old file and leaves no "
        "stub; for each writer", 20, "sizes", "nightly",
    ),
    Promise(
        "failing allocations", "Without memory the old file is kept; for each writer", 40,
        "limits", "nightly",
    ),
    Promise(
        "writers that sync", "A file is on the disk before it gets its name", 15, "writers", "CI"
    ),
)  # fmt: skip
"""What this suite promises."""

_SEED = 0
_SIZES = 20
_FULL = ("write", "create", "mkdir", "truncate", "symlink", "link")


def measure(scale: float) -> Mapping[str, float]:
    """Let every writer fail; see the module.

    Args:
        scale: share of the calls, sizes and allocations that fail; 1 for all.

    Raises:
        AssertionError: a fault does more than it may; the message names it.
    """
    figures: dict[str, float] = staged(_fail_all, scale)
    return figures


def _fail_all(scale: float) -> dict[str, float]:
    warm()
    failed, calls, sizes, allocations, synced = 0, 0, _SIZES, 2 * _SIZES, 0
    reason = syscalls.unavailable()
    assert not reason, f"system calls cannot be seen: {reason}"
    with scratch() as folder:
        for number, writer in enumerate(writers()):
            (folder / str(number)).mkdir()
            place = Place(writer, folder / str(number))
            draws = random.Random(f"{_SEED} {writer.name}")
            found = syscalls.supervise(place.write, place.folder, lambda number, call: 0).calls
            problems = unsynced(found)
            assert not problems, f"{writer.name}: {problems}"
            synced += 1
            chosen = _share(draws, range(len(found)), scale)
            calls += len(chosen)
            for k in chosen:
                failed += fail(place, k)
            sizes = min(sizes, _fill(place, draws, scale))
            allocations = min(allocations, _starve(place, draws, scale))
    return {
        "failing calls, %": 100 * failed / max(calls, 1),
        "sizes of a full disk": sizes,
        "failing allocations": allocations,
        "writers that sync": synced,
    }


def _share(draws: random.Random, items: Iterable[int], scale: float) -> list[int]:
    found = list(items)
    return sorted(draws.sample(found, _round(draws, min(scale, 1) * len(found))))


def _round(draws: random.Random, count: float) -> int:
    """One of the two integers beside `count`, which it is on average."""
    return int(count + draws.random()) if count % 1 else int(count)


def fail(place: Place, k: int) -> bool:
    """Let call k fail alone, and then all from it on as on a full disk; returns True.

    Raises:
        AssertionError: a fault does more than it may.
    """
    for what, answer in (
        (f"EIO of call {k}", lambda n, call: errno.EIO if n == k else 0),
        (f"ENOSPC from call {k} on", lambda n, call: (
            errno.ENOSPC if n >= k and call.name in _FULL else 0)),
    ):  # fmt: skip
        place.reset()
        outcome = syscalls.supervise(place.write, place.folder, answer)
        call = outcome.calls[k] if k < len(outcome.calls) else None
        what = f"{what}, {call}"
        assert outcome.status in (0, 1), f"{place.writer.name}: {what}: status {outcome.status}"
        if outcome.status == 1:
            kinds = outcome.error.partition(":")[0].split(",")
            assert "OSError" in kinds, f"{place.writer.name}: {what}: {outcome.error}"
        found = place.check(what)
        complete = outcome.status == 1 or set(found) == {1}
        assert complete, f"{place.writer.name}: {what}: success, but there is {found}"
        # What cannot be removed is removed by the next call.
        removes = call is not None and call.name == "remove" and "EIO" in what
        assert removes or not place.stubs(), f"{place.writer.name}: {what}: {place.stubs()} is left"
        place.recover(what)
    return True


def _fill(place: Place, draws: random.Random, scale: float) -> int:
    """Write onto full disks; returns how many sizes were tried."""
    place.reset()
    place.recover("an undisturbed write")
    files = [path.stat().st_size for path in place.folder.rglob("*") if path.is_file()]
    count = _round(draws, _SIZES * scale)
    for i in range(count):
        limit = int((i + draws.random()) * max(files) / count)
        place.reset()
        what = f"files of at most {limit} bytes"
        status = fork(lambda: _expect_full(place, limit))  # noqa: B023
        assert status in (0, 3), f"{place.writer.name}: {what}: status {status}"
        place.check(what)
        assert not place.stubs(), f"{place.writer.name}: {what}: {place.stubs()} is left"
        place.recover(what)
    if count and not full_disk.unavailable():
        full_disk.fill(place, [(i + draws.random()) / count for i in range(count)], sum(files))
    return count


def _expect_full(place: Place, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    full_disk.exit_with(place.write)


def _starve(place: Place, draws: random.Random, scale: float) -> int:
    """Write without memory; returns how often."""
    count = _round(draws, _SIZES * scale)
    for i in range(count):
        limit = int((i + draws.random()) * (1 << 24) / count)
        number = int(10 ** draws.uniform(0, 4.5))
        works: Mapping[str, Callable[[], None]] = {
            f"{limit} bytes of memory": lambda: _with_limit(place, limit),  # noqa: B023
            f"allocation {number} fails": lambda: _without_memory(place, number),  # noqa: B023
        }
        for what, work in works.items():
            place.reset()
            fork(work)  # which may end in any way
            place.check(what)
            place.recover(what)
    return 2 * count


def _with_limit(place: Place, limit: int) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit += pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    full_disk.quietly(place.write)


def _without_memory(place: Place, number: int) -> None:
    try:
        from _testcapi import set_nomemory  # type: ignore[import-not-found]
    except ImportError:  # not every build of Python has it
        return
    set_nomemory(number, number + 1)
    full_disk.quietly(place.write)


def unsynced(calls: Iterable[Call]) -> list[str]:
    """What a trace gives its final name before it is synced, or leaves without.

    Names of temporary files and folders are not final: they begin with a dot or end in ".tmp".
    """
    dirty: set[str] = set()
    named: dict[str, str] = {}  # by folder, a name that is not synced
    problems = []
    for call in calls:
        below = {path for path in dirty if f"{path}/".startswith(f"{call.path}/")}
        if call.name in ("write", "truncate", "create"):
            dirty.add(call.path)
        elif call.name == "fsync":
            dirty.discard(call.path)
            named.pop(call.path, None)
        elif call.name == "remove":
            dirty -= below
            named = {k: v for k, v in named.items() if not f"{k}/".startswith(f"{call.path}/")}
        elif call.name in ("rename", "link"):
            dirty -= below
            if is_temporary(call.target):
                dirty |= {call.target + path.removeprefix(call.path) for path in below}
                continue
            problems += [f"{path} is not synced before it is renamed" for path in sorted(below)]
            named[str(Path(call.target).parent)] = call.target
    problems += [f"{path} is not synced" for path in sorted(dirty)]
    return problems + [f"the name {name} is not synced" for name in named.values()]
