"""Processes that write one target at once.

At each system call by which a writer changes a file, a second process writes the same target from
beginning to end; if it waits for the first, the first goes on. Both succeed, or, where nothing is
replaced, one of them says that the other was there. Each file is then that of one of them, whole;
nothing else is left, and what lies beside them is untouched. So two commands may have one folder
of results, and two processes may save one model.

What a run of training writes is not here: its folder is locked as long as it runs.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from pathlib import Path

from tests.reliability.files import syscalls
from tests.reliability.files.box import forked, scratch, staged
from tests.reliability.files.place import Place
from tests.reliability.files.writer import Writer
from tests.reliability.files.writers import warm, writers
from tests.reliability.promise import Promise

__all__ = ["OF_A_RUN", "PROMISES", "measure", "measure_writer", "meet_all"]

PROMISES = (
    Promise(
        "moments of two writers", "Two processes that write one target at once both succeed, or "
        "one is refused by name; what is there is whole, and nothing is left", 500, "moments",
        "nightly",
    ),
    Promise("targets of two writers", "Every writer but those of a run, which locks its folder",
            10, "writers", "CI"),
)  # fmt: skip
"""What this suite promises."""

OF_A_RUN = frozenset({
    "training checkpoint", "training checkpoint of several processes",
    "configuration and log of a run",
})  # fmt: skip
"""Writers that never meet another one."""

_SEED = 0
_REFUSED = 3
"""Status of a second process whose error is one of the documentation."""
_LOOKS, _PAUSE = 5, 0.01


def measure(scale: float) -> Mapping[str, float]:
    """Let all writers meet themselves; see the module.

    Args:
        scale: share of the moments, at least one of each writer.

    Raises:
        AssertionError: a file is damaged, something is left, or a writer fails; the message names
            the moment.
    """
    figures: dict[str, float] = staged(_measure, scale)
    return figures


def _measure(scale: float) -> dict[str, float]:
    warm()
    reason = syscalls.unavailable()
    assert not reason, f"system calls cannot be seen: {reason}"
    chosen = [writer for writer in writers() if writer.name not in OF_A_RUN]
    moments = 0
    with scratch() as folder:
        for number, writer in enumerate(chosen):
            moments += meet_all(writer, folder / str(number), scale)
    return {"moments of two writers": moments, "targets of two writers": len(chosen)}


def measure_writer(name: str) -> int:
    """Let one writer meet itself at every moment; returns their number.

    Raises:
        AssertionError: see :func:`measure`.
    """
    warm()
    (writer,) = (writer for writer in writers() if writer.name == name)
    with scratch() as folder:
        return meet_all(writer, folder / "a")


def meet_all(writer: Writer, folder: Path, scale: float = 1) -> int:
    """Let a writer meet itself in a new folder, at a share of its moments; returns their number."""
    folder.mkdir()
    place, draws = Place(writer, folder), random.Random(f"{_SEED} {writer.name}")
    calls = len(syscalls.supervise(place.write, place.folder, lambda number, call: 0).calls)
    moments = sorted(draws.sample(range(calls), max(1, round(min(scale, 1) * calls))))
    for moment in moments:
        _meet(place, moment)
    return len(moments)


def _meet(place: Place, moment: int) -> None:
    """Write state 1, and another process state 0 before call `moment` of the first."""
    name = f"{place.writer.name}: a second process before call {moment}"
    second: list[int] = []

    def answer(number: int, call: syscalls.Call) -> int:
        if number == moment:
            second.append(forked(lambda: _write(place)))
            _wait(second[0])
        return 0

    place.reset()
    first = syscalls.supervise(place.write, place.folder, answer)
    _, code = os.waitpid(second[0], 0)
    status = os.waitstatus_to_exitcode(code)
    what = f"{name}, {first.calls[moment]}"
    refusals = [first.status == 1, status == _REFUSED]
    kinds = {"OSError", "ValueError"} & set(first.error.partition(":")[0].split(","))
    fine = first.status == 0 or (first.status == 1 and kinds)
    assert fine, f"{what}: the first ends with {first.status}: {first.error}"
    assert status in (0, _REFUSED), f"{what}: the second ends with {status}"
    allowed = 0 if place.writer.replaces else 1
    assert sum(refusals) <= allowed, f"{what}: refused are {refusals}: {first.error}"
    found = place.check(what)
    assert None not in found, f"{what}: there is {found}"
    place.check_names(what, either=True)


def _write(place: Place) -> None:
    try:
        place.writer.write(place.folder, 0)
    except (OSError, ValueError):
        os._exit(_REFUSED)


def _wait(pid: int) -> None:
    """Wait until a process has ended, or waits itself: for the one that is held."""
    seen: list[tuple[str, ...]] = []
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        seen = [*seen[-_LOOKS:], (fields[0], *fields[11:13])]
        if len(seen) > _LOOKS and len(set(seen)) == 1 and fields[0] == "S":
            return
        time.sleep(_PAUSE)
