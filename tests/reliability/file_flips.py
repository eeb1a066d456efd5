"""Flipped bits and lost ends, in every stored format.

Files that the library writes or reads are damaged one bit at a time, or cut off at a random length,
and read again in a process that may take 1 GB more than before and 10 s of processor time. Reading
raises the error of its documentation or gives the same content; a type that a caller would not
expect (UnicodeDecodeError, RecursionError, KeyError, TypeError ...) is a failure, and so is an
attempt to allocate without bound. Where a checksum exists, nothing may be silently other.

Without a checksum are: text that people change (config.json, config.toml, log.csv, lists of
prompts, tables), pictures, IDX files that are not packed, safetensors files of other programs that
have no ``.sha256`` beside them, PyTorch's old format, a tokenizer's file, the description at the
end of a Parquet file, and data sets or indices that the caller opens without verification.
``tests/reliability/files`` names each. Files of safetensors without a checksum are cut off in vain:
their length is in the header.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.reliability.files.box import CPU_SECONDS, Died, boxed, exhausted, scratch, staged
from tests.reliability.files.formats import Format, registry
from tests.reliability.promise import Promise

__all__ = ["PROMISES", "Damage", "census", "judge", "measure"]

PROMISES = (
    Promise(
        "bits flipped", "A flipped bit raises the documented error, or changes nothing where there "
        "is a checksum", 4000, "bits", "nightly",
    ),
    Promise(
        "ends cut off", "A file that ends too early raises the documented error, or has the same "
        "content", 600, "files", "nightly",
    ),
    Promise("formats damaged", "Every format that the library reads", 34, "formats", "CI"),
)  # fmt: skip
"""What this suite promises."""

_SEED = 0
_SURPRISES = (UnicodeError, RecursionError, LookupError, ArithmeticError, MemoryError)
"""Errors that no caller expects, though some are of a documented type."""


class Damage(NamedTuple):
    """One damage of one file."""

    kind: str
    file: str
    at: int

    def apply(self, content: bytes) -> bytes:
        """The damaged content."""
        if self.kind == "cut":
            return content[: self.at]
        byte, bit = divmod(self.at, 8)
        return content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :]


def measure(scale: float) -> Mapping[str, float]:
    """Damage every format; see the module.

    Args:
        scale: 1 for 4,000 bits and 600 ends.

    Raises:
        AssertionError: a damage is not noticed, or raises another error; the message repeats it.
    """
    counts = census(scale)
    totals = collections.Counter[str]()
    for (_, kind, _), count in counts.items():
        totals[kind] += count
    return {
        "bits flipped": totals["flip"],
        "ends cut off": totals["cut"],
        "formats damaged": len({name for name, _, _ in counts}),
    }


def census(scale: float) -> Mapping[tuple[str, str, str], int]:
    """How many damages of each format and kind were an "error", the "same", or "silent"."""
    found: Mapping[tuple[str, str, str], int] = staged(_census, scale)
    return found


def _census(scale: float) -> dict[tuple[str, str, str], int]:
    formats = registry()
    flips, cuts = (max(1, -(-round(n * scale) // len(formats))) for n in (4000, 600))
    counts = collections.Counter[tuple[str, str, str]]()
    problems = []
    with scratch() as place:
        for number, each in enumerate(formats):
            folder = place / str(number)
            folder.mkdir()
            try:
                each.make(folder)
                outcomes = judge(each, folder, _damages(folder, each.name, flips, cuts))
            except Exception as error:
                raise AssertionError(f"{each.name}: {type(error).__name__}: {error}") from error
            for damage, outcome in outcomes:
                if outcome not in ("error", "same", "silent"):
                    problems.append(f"{each.name}, seed {_SEED}: {damage}: {outcome}")
                counts[each.name, damage.kind, outcome] += 1
    assert not problems, f"{len(problems)} damages:\n" + "\n".join(problems[:40])
    return dict(counts)


def _damages(folder: Path, name: str, flips: int, cuts: int) -> list[Damage]:
    """Damages of the files of a folder; small files are as likely as two kilobytes."""
    draws = random.Random(f"{_SEED} {name}")
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size
    }  # fmt: skip
    files, weights = list(sizes), [size + 2000 for size in sizes.values()]
    damages = []
    for kind, count in (("flip", flips), ("cut", cuts)):
        for file in draws.choices(files, weights, k=count):
            units = 8 * sizes[file] if kind == "flip" else sizes[file]
            damages.append(Damage(kind, file, draws.randrange(units)))
    return damages


def judge(each: Format, folder: Path, damages: list[Damage]) -> list[tuple[Damage, str]]:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    whole = each.load(folder)
    _restore(before)  # a lock is removed by whoever reads it

    def case(number: int) -> str:
        damage = damages[number]
        path = folder / damage.file
        path.write_bytes(damage.apply(before[path]))
        try:
            same = each.load(folder) == whole
        except Exception as error:
            return _error(error, each.errors)
        finally:
            _restore(before)
        if same:
            return "same"
        reason = each.why_silent(damage.file)
        silent = reason is not None and (damage.kind == "flip" or reason.cuts)
        return "silent" if silent else "it has silently another content"

    outcomes = []
    for damage, outcome in zip(damages, boxed(case, len(damages)), strict=True):
        if isinstance(outcome, Died):
            _restore(before)
            outcome = outcome.why
        outcomes.append((damage, outcome))
    return outcomes


def _restore(before: Mapping[Path, bytes]) -> None:
    for path, content in before.items():
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def _error(error: Exception, documented: tuple[type[Exception], ...]) -> str:
    text = f"{type(error).__name__}: {error}"
    if not isinstance(error, documented) or isinstance(error, _SURPRISES):
        return f"another error, {text}"
    if exhausted(error):
        return f"it asks for more than the box has, {CPU_SECONDS} s or 1 GB: {text}"
    return "error" if "\n" not in str(error) else f"an error of several lines, {text}"
