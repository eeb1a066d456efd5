"""The target of a writer before and after something happens to it, and the files beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bitdance.io import files
from tests.reliability.files.box import forked
from tests.reliability.files.writer import Writer, listing

__all__ = ["Place", "fork", "is_temporary"]

_CONTENT = b"of somebody else"


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a fork; returns its status, minus the number of a signal that ended it."""
    _, status = os.waitpid(forked(work), 0)
    return os.waitstatus_to_exitcode(status)


class Place:
    """A folder with state 0 of a writer, or none, to which state 1 is written again and again.

    Beside what is written lie files of somebody else with similar names, which must stay.

    Args:
        writer: the writer.
        folder: an empty folder.

    Raises:
        AssertionError: the writer does not write what its `read` finds.
    """

    def __init__(self, writer: Writer, folder: Path) -> None:
        self.writer, self._base, self.folder = writer, folder / "base", folder / "target"
        self._base.mkdir()
        if writer.replaces:
            assert fork(lambda: writer.write(self._base, 0)) == 0, f"{writer.name}: state 0"
        self._before = writer.read(self._base)
        assert set(self._before) <= {0, None}, (writer.name, self._before)
        self.reset()
        assert fork(self.write) == 0, f"{writer.name}: state 1"
        self._strangers = list(_strangers(self._base, self.folder))
        for path in self._strangers:
            (self._base / path).write_bytes(_CONTENT)
        self.reset()
        assert fork(self.write) == 0, f"{writer.name}: state 1 beside other files"
        assert set(self.check("an undisturbed write")) == {1}, writer.name
        self._names = listing(self.folder)
        self.reset()

    def reset(self) -> None:
        """Bring the target back to state 0."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._base, self.folder)

    def write(self) -> None:
        """Write state 1."""
        self.writer.write(self.folder, 1)

    def stubs(self) -> set[str]:
        """Names that neither state has, and that are no files of its own right."""
        new = listing(self.folder) - self._names - listing(self._base)
        return {name for name in new if is_temporary(name)}

    def check(self, what: str) -> tuple[int | None, ...]:
        """Check that every part is there as it was, or in state 1; returns the states.

        Raises:
            AssertionError: a part is damaged or lost, or a file of others is.
        """
        with _explained(f"{self.writer.name}: {what}"):
            found = self.writer.read(self.folder)
        touched = [str(p) for p in self._strangers if not _is_untouched(self.folder / p)]
        assert not touched, f"{self.writer.name}: {what}: others' {touched} are changed or gone"
        lost = self.writer.replaces and None in found and None not in self._before
        assert not lost, f"{self.writer.name}: {what}: the old state is lost, there is {found}"
        return found

    def recover(self, what: str) -> None:
        """Write state 1 again, and check that nothing else is left.

        Raises:
            AssertionError: it cannot be written, or there is something that nobody removes.
        """
        again = self.writer.replaces or self.writer.resumes
        if again or set(self.writer.read(self.folder)) != {1}:
            if self.writer.clear:
                self.writer.clear(self.folder)
            status = fork(self.write)
            assert status == 0, f"{self.writer.name}: {what}: the next call ends with {status}"
        else:  # nobody writes it once more, but others may write beside its files
            fork(self._write_beside)
        assert set(self.check(what)) == {1}, f"{self.writer.name}: {what}: state 1 is not there"
        self.check_names(what)

    def check_names(self, what: str, *, either: bool = False) -> None:
        """Check that there is what an undisturbed write leaves, by name.

        Args:
            what: what has happened, for the message.
            either: whether state 0 will do.

        Raises:
            AssertionError: there is something else, or less.
        """
        others = [listing(self._base)] if either and self.writer.replaces else []
        found = listing(self.folder)
        left = min((found ^ names for names in (self._names, *others)), key=len)
        assert not left, f"{self.writer.name}: {what}: {sorted(left)} is left, or missing"

    def _write_beside(self) -> None:
        for folder in {(self.folder / name).parent for name in self.stubs()}:
            if folder.is_dir():
                with files.temporary_file(folder / "other"):
                    pass


def is_temporary(name: str) -> bool:
    """Whether a file or folder has the name of one that is not finished, or lies in such."""
    parts = Path(name).parts
    return any(part.startswith(".") or part.endswith((".tmp", ".staged")) for part in parts)


def _strangers(old: Path, new: Path) -> Iterator[Path]:
    """Paths beside what is in both states of a target, with names like those of a writer."""
    folders = [Path(), *(path.relative_to(new) for path in sorted(new.rglob("*")) if path.is_dir())]
    for folder in folders:
        if not (old / folder).is_dir():
            continue  # it appears and goes as a whole
        names = set()
        for path in (new / folder).iterdir():
            names |= {f"other{path.suffix}", f"{path.stem}-00001-of-00002{path.suffix}"}
            names.add(f"{path.stem.partition('-')[0]}-00001-of-00002{path.suffix}")
        yield from (folder / name for name in sorted(names) if not (new / folder / name).exists())


def _is_untouched(path: Path) -> bool:
    return path.is_file() and path.read_bytes() == _CONTENT


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what}: it is damaged: {type(error).__name__}: {error}") from error
