"""Writers that meet themselves, at a small size, and that those who disturb each other are seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability import side_by_side
from tests.reliability.files import syscalls
from tests.reliability.files.box import scratch, staged
from tests.reliability.files.writer import Writer
from tests.reliability.files.writers import writers


@pytest.fixture(scope="module", autouse=True)
def _calls() -> None:
    if reason := staged(syscalls.unavailable):
        pytest.skip(reason)


def test_one_moment_of_each_writer() -> None:
    figures = side_by_side.measure(0.001)
    count = len(writers()) - len(side_by_side.OF_A_RUN)
    assert figures == {"moments of two writers": count, "targets of two writers": count}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "weights with a sidecar" else pytest.mark.nightly)
        for name in (writer.name for writer in writers())
        if name not in side_by_side.OF_A_RUN
    ],
)
def test_every_moment(name: str) -> None:
    assert staged(side_by_side.measure_writer, name) > 5


def _put(folder: Path, number: int, temporary: str) -> None:
    (folder / temporary).write_text(f"{number}" * 10)
    os.replace(folder / temporary, folder / "a")


def _good(folder: Path, number: int) -> None:
    _put(folder, number, f".a.{os.getpid()}")


def _one_name(folder: Path, number: int) -> None:
    _put(folder, number, ".a")


def _in_two_files(folder: Path, number: int) -> None:
    _good(folder, number)
    (folder / "b").write_text(f"{number}")


def _takes_others(folder: Path, number: int) -> None:
    for path in folder.glob("*-of-*"):
        path.unlink()
    _good(folder, number)


def _read(folder: Path) -> tuple[int | None, ...]:
    if not (folder / "a").exists():
        return (None,)
    text = (folder / "a").read_text()
    assert text in ("0" * 10, "1" * 10), text
    assert not (folder / "b").exists() or (folder / "b").read_text() == text[0]
    return (int(text[0]),)


WRITERS: dict[str, tuple[Callable[[Path, int], None], str]] = {
    "good": (_good, ""),
    "one name": (_one_name, "refused are [True, False]"),
    "two files": (_in_two_files, "it is damaged"),
    "takes others'": (_takes_others, "are changed or gone"),
}


def _judge(name: str) -> str:
    with scratch() as folder:
        try:
            side_by_side.meet_all(Writer(name, WRITERS[name][0], _read), folder / "a")
        except AssertionError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("name", WRITERS)
def test_writers_that_disturb_each_other_are_seen(name: str) -> None:
    _, expected = WRITERS[name]
    found = staged(_judge, name)
    assert expected in found if expected else found == ""
