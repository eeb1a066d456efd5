"""The target of a writer before and after something happens to it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bitdance.io import files
from tests.reliability.files.box import forked
from tests.reliability.files.writers import Writer, listing

__all__ = ["Place", "fork", "is_temporary"]


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a fork; returns its status, minus the number of a signal that ended it."""
    _, status = os.waitpid(forked(work), 0)
    return os.waitstatus_to_exitcode(status)


class Place:
    """A folder with state 0 of a writer, or none, to which state 1 is written again and again.

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
        assert set(writer.read(self.folder)) == {1}, writer.name
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
            AssertionError: a part is damaged or lost.
        """
        with _explained(f"{self.writer.name}: {what}"):
            found = self.writer.read(self.folder)
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
            status = fork(self.write)
            assert status == 0, f"{self.writer.name}: {what}: the next call ends with {status}"
        else:  # nobody writes it once more, but others may write beside its files
            fork(self._write_beside)
        assert set(self.check(what)) == {1}, f"{self.writer.name}: {what}: state 1 is not there"
        left = listing(self.folder) ^ self._names
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


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what}: it is damaged: {type(error).__name__}: {error}") from error
