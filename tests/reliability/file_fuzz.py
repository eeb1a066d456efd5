"""Files and requests with changes that keep their structure, and crafted attacks.

Each reader gets files that are changed where it looks: values of every kind in every place of a
configuration or request, heads of safetensors, ``.npy`` and tar files, opcodes of pickles, fields
of archives, chunks of pictures. Checksums are made right again, so that what is behind them is
reached. It raises the error of its documentation or reads something, in 10 s of processor time and
with 1 GB more than before. ``files/attacks.py`` has what somebody would write on purpose: pickles
that run code, archives that inflate, sizes beyond every memory, names that lead out of the folder
to a file that is there, pipes, devices and links that go round.

Every input follows from the seed in the message of a failure. ``python -m
tests.reliability.file_fuzz SECONDS`` runs a guided search where Google's atheris is installed; it
is not needed, and its inputs are not counted.
"""

from __future__ import annotations

import collections
import math
import random
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.reliability.files import attacks
from tests.reliability.files.box import Died, boxed, exhausted, scratch, staged
from tests.reliability.files.targets import Target, targets
from tests.reliability.promise import Promise

__all__ = ["PROMISES", "census", "judge", "measure"]

PROMISES = (
    Promise(
        "inputs fuzzed", "Changed files and requests raise the documented error or are read, "
        "within 10 s and 1 GB", 30_000, "inputs", "nightly",
    ),
    Promise(
        "crafted attacks", "No code of a file runs, nothing outside of its folder is read, and it "
        "is refused within 10 s and 1 GB", 500, "files", "nightly",
    ),
)  # fmt: skip
"""What this suite promises."""

_SEED = 0
_SURPRISES = (UnicodeError, RecursionError, LookupError, ArithmeticError, MemoryError)


def measure(scale: float) -> Mapping[str, float]:
    """Fuzz every target and run all attacks; see the module.

    Args:
        scale: 1 for 30,000 inputs and all attacks; at least 60 attacks.

    Raises:
        AssertionError: an input has another end; the message repeats it.
    """
    figures: dict[str, float] = staged(_measure, scale)
    return figures


def _measure(scale: float) -> dict[str, float]:
    return {
        "inputs fuzzed": sum(_census(scale).values()),
        "crafted attacks": attacks.run_all(scale),
    }


def census(scale: float) -> Mapping[tuple[str, str], int]:
    """How many inputs of each target raised an "error" or were "read"."""
    found: Mapping[tuple[str, str], int] = staged(_census, scale)
    return found


def _census(scale: float) -> dict[tuple[str, str], int]:
    chosen = targets()
    unit = 30_000 * scale / sum(target.weight for target in chosen)
    counts = collections.Counter[tuple[str, str]]()
    problems = []
    with scratch() as place:
        for number, target in enumerate(chosen):
            folder = place / str(number)
            folder.mkdir()
            target.format.make(folder)
            count = max(1, math.ceil(unit * target.weight))
            for case, outcome in enumerate(_run(target, folder, count)):
                if outcome not in ("error", "read"):
                    seed = f"{_SEED} {target.name} {case}"
                    problems.append(f"{target.name}, seed {seed!r}: {outcome}")
                counts[target.name, outcome] += 1
    assert not problems, f"{len(problems)} inputs:\n" + "\n".join(problems[:40])
    return dict(counts)


def _run(target: Target, folder: Path, count: int) -> list[str]:
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

    def case(number: int) -> str:
        try:
            target.mutate(folder, files, random.Random(f"{_SEED} {target.name} {number}"))
            return judge(target, folder)
        finally:
            _restore(folder, files)

    outcomes = []
    for outcome in boxed(case, count):
        if isinstance(outcome, Died):
            _restore(folder, files)
            outcome = outcome.why
        outcomes.append(outcome)
    return outcomes


def judge(target: Target, folder: Path) -> str:
    """How a changed folder ends: "error", "read", or what is wrong."""
    try:
        target.format.load(folder)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, target.format.errors) or isinstance(error, _SURPRISES):
            return f"another error, {text[:300]}"
        if exhausted(error):
            return f"it asks for more memory than 1 GB: {text[:300]}"
        return "error" if "\n" not in str(error) else f"an error of several lines, {text[:300]}"
    return "read"


def _restore(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def _search(seconds: int) -> None:
    """A search that atheris guides by the lines of the library that an input reaches."""
    import atheris

    with scratch() as place, atheris.instrument_imports(include=["bitdance"]):
        chosen = []
        for number, target in enumerate(targets()):
            folder = place / str(number)
            folder.mkdir()
            target.format.make(folder)
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
            chosen.append((target, folder, files))

        def one(data: bytes) -> None:
            target, folder, files = chosen[(data[0] if data else 0) % len(chosen)]
            target.mutate(folder, files, random.Random(data[1:]))
            outcome = judge(target, folder)
            _restore(folder, files)
            assert outcome in ("error", "read"), f"{target.name}: {outcome}"

        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=64"], one)
        atheris.Fuzz()


if __name__ == "__main__":
    _search(int(sys.argv[1]))
