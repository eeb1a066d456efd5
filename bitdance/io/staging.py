"""Folders that are written completely or not at all."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from bitdance.io import files

__all__ = ["StagedFolder"]

_SUFFIX = ".staged"


class StagedFolder:
    """A temporary folder beside `folder`, which is renamed to it when it is complete.

    The temporary folder is locked while its process lives. Those that killed processes have left
    are not locked, and are removed.

    Args:
        folder: must not exist, or be empty.

    Attributes:
        path: the temporary folder to write to.

    Raises:
        FileExistsError: the folder is not empty, or is a file.
        OSError: the parent folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        # Absolute, so that the process may change its working folder.
        self.folder = Path(folder).absolute()
        with _name_folder_in_errors(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise FileExistsError(f"{self.folder} exists and is not a folder")
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise FileExistsError(f"{self.folder} exists and is not empty")
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            start = re.escape(f".{self.folder.name[:100]}.")
            pattern = re.compile(rf"{start}\w+{re.escape(_SUFFIX)}")
            files.remove_leftovers(self.folder.parent, pattern)
            self.path, self._lock = files.make_locked_folder(self.folder, _SUFFIX)

    def commit(self) -> None:
        """Rename the temporary folder, whose files must be synced, to its final name.

        Raises:
            OSError: the disk is full, or another process has written to the folder meanwhile.
        """
        with _name_folder_in_errors(self.folder):
            self.path.chmod(0o777 & ~files.umask())
            files.sync(self.path)
            # Atomic, even if an empty folder is replaced.
            self.path.replace(self.folder)
            files.sync(self.folder.parent)

    def discard(self) -> None:
        """Remove the folder if it was not committed, and unlock it."""
        shutil.rmtree(self.path, ignore_errors=True)
        files.unlock(self._lock)
        self._lock = None


@contextlib.contextmanager
def _name_folder_in_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        at = f": {error.filename}" if error.filename else ""
        # OSError chooses the class by errno: PermissionError, NotADirectoryError ...
        raise OSError(error.errno, f"cannot write {folder}: {error.strerror}{at}") from error
