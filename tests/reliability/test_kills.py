"""The suite of kills at a small size, and that it notices writers that are not whole."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability import faults_of_writing, kills
from tests.reliability.files import syscalls
from tests.reliability.files.box import scratch, staged
from tests.reliability.files.place import Place
from tests.reliability.files.sites import WRITES, sites
from tests.reliability.files.syscalls import Call
from tests.reliability.files.writer import Writer
from tests.reliability.files.writers import warm, writers

ELSEWHERE = {
    "bitdance.cli.bench.draw": "a plot, by replace_file",
    "bitdance.cli.errors._flush": "the null device",
    "bitdance.integrations.demo.bit_map.npy_file": "a temporary file of the page",
    "bitdance.integrations.demo.html._image": "in memory",
    "bitdance.integrations.demo.html._png": "in memory",
    "bitdance.integrations.demo.runner.Runner": "a temporary folder of the page",
    "bitdance.integrations.serving.models.ServedModel": "in memory",
}
"""Code that writes files and is no writer of its own, and why."""


@pytest.fixture(scope="module")
def _calls() -> None:
    """For tests of system calls."""
    if reason := staged(syscalls.unavailable):
        pytest.skip(reason)


def test_every_writer_of_the_library_is_killed() -> None:
    registered = {site for writer in writers() for site in writer.sites}
    found = set(sites(WRITES, modes="wxa"))
    assert found - registered - ELSEWHERE.keys() == set(), "register a Writer, or say why not"
    assert (registered | ELSEWHERE.keys()) - found == set(), "these write nothing any more"


def test_a_few_kills() -> None:
    figures = kills.measure(0.003)
    assert figures["kills of each writer"] == 1
    assert figures["writers killed"] == len(writers())


def _kill(name: str) -> int:
    (writer,) = (writer for writer in writers() if writer.name == name)
    warm()
    with scratch() as place:
        return kills.kill(writer, place / "a", 60)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [writer.name for writer in writers()])
def test_many_kills_of_a_writer(name: str) -> None:
    assert staged(_kill, name) == 60


@pytest.mark.usefixtures("_calls")
def test_a_few_faults() -> None:
    figures = faults_of_writing.measure(0.02)
    assert figures["failing calls, %"] == 100
    assert figures["writers that sync"] == len(writers())


def _put(path: Path, number: int, *, sync: bool = True) -> None:
    with path.open("w") as file:
        for _ in range(3):
            file.write(f"{number}" * 10)
            file.flush()
        if sync:
            os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _in_place(folder: Path, number: int) -> None:
    _put(folder / "a", number)


def _with_litter(folder: Path, number: int) -> None:
    _put(folder / f".a.{os.getpid()}", number)
    os.replace(folder / f".a.{os.getpid()}", folder / "a")
    _sync(folder)


def _good(folder: Path, number: int) -> None:
    try:
        _put(folder / ".a", number)
        os.replace(folder / ".a", folder / "a")
        _sync(folder)
    except OSError:
        (folder / ".a").unlink(missing_ok=True)
        raise


def _unsynced(folder: Path, number: int) -> None:
    _put(folder / ".a", number, sync=False)
    os.replace(folder / ".a", folder / "a")


def _swallows(folder: Path, number: int) -> None:
    with contextlib.suppress(OSError):
        _good(folder, number)


def _read(folder: Path) -> tuple[int | None, ...]:
    if not (folder / "a").exists():
        return (None,)
    text = (folder / "a").read_text()
    assert text in ("0" * 30, "1" * 30), text
    return (int(text[0]),)


ODD = {f.__name__: f for f in (_in_place, _with_litter, _good, _unsynced, _swallows)}


def _text_of(work: Callable[..., object], *arguments: object) -> object:
    """What a function returns, or the text of its :class:`AssertionError`."""
    try:
        return work(*arguments)
    except AssertionError as error:
        return str(error)


def _judge() -> dict[str, tuple[object, list[object], list[str]]]:
    """By the name of a writer: after kills, after faults, and what its trace shows."""
    found = {}
    for name, write in ODD.items():
        writer = Writer(name, write, _read)
        with scratch() as folder:
            killed = _text_of(kills.kill, writer, folder / "a", 12)
            place = Place(writer, folder)
            faults = [_text_of(faults_of_writing.fail, place, k) for k in range(7)]
            place.reset()
            trace = syscalls.supervise(place.write, place.folder, lambda number, call: 0).calls
            found[name] = killed, faults, faults_of_writing.unsynced(trace)
    return found


@pytest.mark.usefixtures("_calls")
def test_odd_writers_are_noticed() -> None:
    found = staged(_judge)
    assert found["_good"] == (12, [True] * 7, [])
    for name, of_kills, of_faults in (
        ("_in_place", "it is damaged", "it is damaged"),
        ("_with_litter", "is left, or missing", "is left"),
        ("_swallows", None, "success, but there is"),
    ):  # fmt: skip
        killed, faults, _ = found[name]
        assert killed == 12 if of_kills is None else of_kills in str(killed), (name, killed)
        assert any(of_faults in str(fault) for fault in faults), (name, faults)
    problems = [problem.rpartition("/")[2] for problem in found["_unsynced"][2]]
    assert problems == [".a is not synced before it is renamed", "a is not synced"]


def test_which_names_are_not_synced() -> None:
    made = [Call("mkdir", "/t/x"), Call("create", "/t/x/a"), Call("write", "/t/x/a")]
    moved = [Call("rename", "/t/x", "/t/y")]
    assert faults_of_writing.unsynced([*made, *moved]) == [
        "/t/x/a is not synced before it is renamed", "the name /t/y is not synced"
    ]  # fmt: skip
    synced = [*made, Call("fsync", "/t/x/a"), *moved, Call("fsync", "/t")]
    assert faults_of_writing.unsynced(synced) == []
    assert faults_of_writing.unsynced(made) == ["/t/x/a is not synced"]
    assert faults_of_writing.unsynced([*made, Call("remove", "/t/x/a")]) == []
    hidden = [Call("create", "/t/.x/.b"), Call("rename", "/t/.x/.b", "/t/.x/a")]
    late = [*hidden, Call("fsync", "/t/.x/a"), Call("rename", "/t/.x/a", "/t/a")]
    assert faults_of_writing.unsynced(hidden) == ["/t/.x/a is not synced"]
    assert faults_of_writing.unsynced(late) == ["the name /t/a is not synced"]
