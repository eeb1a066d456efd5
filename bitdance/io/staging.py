"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from bitdance.io import files

__all__ = ["StagedFolder"]

_SUFFIX = ".staged"


class StagedFolder:
    """A temporary folder beside `folder`, which takes its place in one step.

    The temporary folder is locked while its process lives. What an earlier process left there when
    it was killed is not locked any more, and is removed.

    Args:
        folder: must not exist, or be empty.

    Attributes:
        path: where to write.

    Raises:
        FileExistsError: the folder has something in it, or is a file.
        OSError: the folder that is to hold it cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        # Absolute, for a process that changes its working folder on the way.
        self.folder = Path(folder).absolute()
        with _explained(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise FileExistsError(f"{self.folder} exists and is not a folder")
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise FileExistsError(f"{self.folder} exists and is not empty")
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            start = re.escape(f".{self.folder.name[:100]}.")
            ended = re.compile(rf"{start}\w+{re.escape(_SUFFIX)}")
            files.remove_leftovers(self.folder.parent, ended)
            self.path, self._lock = files.locked_folder(self.folder, _SUFFIX)

    def commit(self) -> None:
        """Put the folder in its place; all files in it must be synced.

        Raises:
            OSError: the disk is full, or somebody else has put something there meanwhile.
        """
        with _explained(self.folder):
            self.path.chmod(0o777 & ~files.umask())
            files.sync(self.path)
            # On an empty folder, too, this is one step: before it nothing is there, after it all.
            self.path.replace(self.folder)
            files.sync(self.folder.parent)

    def discard(self) -> None:
        """Remove what was not committed, and the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        at = f": {error.filename}" if error.filename else ""
        # The errno chooses the class: PermissionError, NotADirectoryError ...
        raise OSError(error.errno, f"cannot write {folder}: {error.strerror}{at}") from error
