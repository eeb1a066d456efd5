"""Processes that are killed while they write, and commands that are stopped.

Every writer of the library is killed (SIGKILL) before each system call by which it changes a file,
whatever library makes it, and then at random moments of many writes. Afterwards every file is the
old or the new one and can be read; the next call of the writer succeeds, and leaves nothing but
what an undisturbed one leaves. SIGTERM and Ctrl-C end commands with the status of the
documentation, at random moments; started again, they end as if nothing had happened.

A kill is not a loss of power. That files are on the disk before they get their names is what
``faults_of_writing`` looks at.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from tests.reliability.files import commands, syscalls
from tests.reliability.files.box import forked, scratch, staged
from tests.reliability.files.place import Place
from tests.reliability.files.writer import Writer
from tests.reliability.files.writers import warm, writers
from tests.reliability.promise import Promise

__all__ = ["PROMISES", "kill", "measure"]

PROMISES = (
    Promise(
        "kills of each writer", "A killed writer leaves the old or the new file whole, and nothing "
        "that the next one does not remove", 300, "kills", "nightly",
    ),
    Promise("writers killed", "Every writer of the library", 15, "writers", "CI"),
    Promise(
        "commands stopped", "SIGTERM and Ctrl-C end a command with its documented status, and it "
        "can be started again", 40, "signals", "nightly",
    ),
)  # fmt: skip
"""What this suite promises."""

_SEED = 0


def measure(scale: float) -> Mapping[str, float]:
    """Kill every writer, and stop commands; see the module.

    Args:
        scale: 1 for 300 kills of each writer and 40 signals.

    Raises:
        AssertionError: a target is damaged, or something is left; the message names the moment.
    """
    figures: dict[str, float] = staged(_measure, scale)
    return figures


def _measure(scale: float) -> dict[str, float]:
    kills = _kill_all(max(1, round(300 * scale)))
    return {
        "kills of each writer": min(kills),
        "writers killed": len(kills),
        "commands stopped": commands.stop_all(max(1, round(40 * scale)), _SEED),
    }


def _kill_all(count: int) -> list[int]:
    warm()
    with scratch() as place:
        return [kill(writer, place / str(i), count) for i, writer in enumerate(writers())]


def kill(writer: Writer, folder: Path, count: int) -> int:
    """Kill a writer `count` times; returns how often it was killed."""
    folder.mkdir()
    place, draws = Place(writer, folder), random.Random(f"{_SEED} {writer.name}")
    calls = 0
    if not syscalls.unavailable():
        calls = len(syscalls.supervise(place.write, place.folder, lambda number, call: 0).calls)
        assert set(place.check("an undisturbed write")) == {1}
    place.reset()
    start = time.perf_counter()
    place.recover("an undisturbed write")
    seconds = time.perf_counter() - start
    moments: list[int | float] = [*range(calls)]
    draws.shuffle(moments)
    moments = moments[:count] if count < calls else moments
    moments += [draws.uniform(0, 1.2 * seconds) for _ in range(count - len(moments))]
    for moment in moments:
        place.reset()
        if isinstance(moment, int):
            what = f"killed before call {moment}"
            found = syscalls.supervise(
                place.write, place.folder,
                lambda number, call: syscalls.KILL if number == moment else 0,  # noqa: B023
            )  # fmt: skip
            if found.calls:
                what += f", {found.calls[-1]}"
        else:
            what = f"killed after {moment:.6f} s"
            _kill_later(place, moment)
        place.check(what)
        place.recover(what)
    return len(moments)


def _kill_later(place: Place, seconds: float) -> None:
    """Kill a process that writes state 1, again and again where that may be."""

    def work() -> None:
        place.write()
        while place.writer.replaces and place.writer.overwrites:
            place.write()

    pid = forked(work)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
