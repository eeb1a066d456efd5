"""The records of planted faults, and what is wrong with them without running anything."""

from __future__ import annotations

import ast
import fnmatch
import functools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Mutant", "load", "part_of", "problems", "select"]

HERE = Path(__file__).parent
REBUILDS = ("", "cpu", "cuda")
_REQUIRED = {"name", "what", "file", "anchor", "replacement"}
_OPTIONAL = {"tests", "suites", "rebuild", "slow", "equivalent"}
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Mutant:
    """A fault, a table ``[[mutant]]`` of a TOML file.

    Attributes:
        area: name of that file without its suffix.
        name: name, unique among all.
        what: what goes wrong, in words.
        file: file to change, relative to the root of the checkout.
        anchor: text of the file that occurs once.
        replacement: what stands in its place.
        tests: ids of tests at least one of which must fail; the narrowest that are known.
        suites: the same of tests/reliability, which run everything there is of a kind and know
            nothing of the fault; for faults that were found in the library by attacking it.
        rebuild: native module to build again: "cpu", "cuda", or "" for none. Emulated device code
            needs none, since its tests compile it.
        slow: whether the tests take more than ten seconds on a quiet core, or a module is rebuilt.
        equivalent: for a change that no test can notice, the proof; it has no tests.
    """

    area: str
    name: str
    what: str
    file: str
    anchor: str
    replacement: str
    tests: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    rebuild: str = ""
    slow: bool = False
    equivalent: str = ""

    @property
    def id(self) -> str:
        """Area and name, as reports show them."""
        return f"{self.area}/{self.name}"

    @property
    def quick(self) -> bool:
        """Whether it costs a few seconds: its tests do not take long, and nothing is rebuilt."""
        return not (self.slow or self.rebuild or self.equivalent)

    def planted(self, text: str) -> str | None:
        """`text` with the fault, None where the anchor does not occur exactly once."""
        if text.count(self.anchor) != 1:
            return None
        return text.replace(self.anchor, self.replacement)


def load(folder: Path = HERE) -> list[Mutant]:
    """The faults of all TOML files of a folder, in the order of the files' names.

    Raises:
        ValueError: a record lacks a key, or has an unknown one; the message names file and record.
    """
    found = []
    for path in sorted(folder.glob("*.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if content.keys() != {"mutant"}:
            raise ValueError(f"{path.name} must consist of [[mutant]] tables, got {list(content)}")
        found += [_parse(path, record) for record in content["mutant"]]
    return found


def _parse(path: Path, record: dict[str, Any]) -> Mutant:
    name = record.get("name", "a record without a name")
    missing, unknown = _REQUIRED - record.keys(), record.keys() - _REQUIRED - _OPTIONAL
    if missing or unknown:
        raise ValueError(
            f"{path.name}: {name} must have the keys {sorted(_REQUIRED)}, lacks {sorted(missing)} "
            f"and has the unknown {sorted(unknown)}"
        )
    lists = {key: tuple(record.get(key, ())) for key in ("tests", "suites")}
    return Mutant(area=path.stem, **{**record, **lists})


def without_own_tests(mutants: Iterable[Mutant]) -> list[Mutant]:
    """The faults that suites are known to notice, with these in place of their own tests."""
    return [replace(m, tests=m.suites, suites=(), slow=True) for m in mutants if m.suites]


def select(mutants: Iterable[Mutant], patterns: Sequence[str]) -> list[Mutant]:
    """The faults whose name, area or "area/name" a pattern matches; all without patterns.

    Raises:
        ValueError: a pattern matches none.
    """
    mutants = list(mutants)
    if not patterns:
        return mutants

    def matches(mutant: Mutant, pattern: str) -> bool:
        names = (mutant.name, mutant.area, mutant.id)
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    for pattern in patterns:
        if not any(matches(mutant, pattern) for mutant in mutants):
            raise ValueError(f"no mutant is called {pattern!r}; --list shows all")
    return [m for m in mutants if any(matches(m, pattern) for pattern in patterns)]


def part_of(mutants: Sequence[Mutant], part: int, parts: int) -> list[Mutant]:
    """Part `part` of `parts`, counted from 1: every `parts`-th fault, so that all areas share.

    Raises:
        ValueError: there is no such part.
    """
    if not 1 <= part <= parts:
        raise ValueError(f"part must be 1 to {parts}, got {part}")
    return list(mutants[part - 1 :: parts])


def problems(mutants: Sequence[Mutant], root: Path) -> list[str]:
    """What is wrong with records, a line each: without a copy, and without running a test.

    Args:
        mutants: all faults.
        root: root of the checkout.
    """
    found = [f"{name} is the name of several" for name, n in _counts(mutants).items() if n > 1]
    for mutant in mutants:
        found += [f"{mutant.id}: {problem}" for problem in _problems(mutant, root)]
    return found


def _counts(mutants: Sequence[Mutant]) -> Counter[str]:
    return Counter(mutant.name for mutant in mutants)


def _problems(mutant: Mutant, root: Path) -> list[str]:
    found = []
    if not _NAME.fullmatch(mutant.name):
        found.append("the name must be of small letters, digits and single hyphens")
    if mutant.rebuild not in REBUILDS:
        found.append(f"rebuild must be 'cpu' or 'cuda', got {mutant.rebuild!r}")
    if bool(mutant.equivalent) == bool(mutant.tests):
        found.append("there must be either tests or a proof that it is equivalent")
    path = root / mutant.file
    if not path.is_file():
        found.append(f"there is no file {mutant.file}")
    else:
        count = path.read_text(encoding="utf-8").count(mutant.anchor)
        if count != 1:
            found.append(f"the anchor occurs {count} times in {mutant.file}")
    if mutant.anchor == mutant.replacement:
        found.append("the replacement is the anchor")
    for suite in mutant.suites:
        if not suite.startswith("tests/reliability/"):
            found.append(f"{suite} is no suite of tests/reliability")
    named = (*mutant.tests, *mutant.suites)
    return found + [problem for test in named for problem in _test_problems(test, root)]


def _test_problems(test: str, root: Path) -> list[str]:
    file, _, name = test.partition("::")
    function = name.partition("[")[0]
    if not function:
        return [f"{test} must name a test function"]
    if not (root / file).is_file():
        return [f"there is no file {file}"]
    return [] if function in _functions(root / file) else [f"{file} has no {function}"]


@functools.cache
def _functions(path: Path) -> frozenset[str]:
    """Names of the test functions of a file; those of a class as "Class::function"."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in body if isinstance(node, kinds)}
    for node in body:
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, kinds)
            }
    return frozenset(names)
