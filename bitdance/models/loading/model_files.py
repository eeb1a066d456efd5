"""Where the files of a model are: in a folder, or in a repository from which some are fetched."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch

from bitdance.io.files import one_line
from bitdance.io.weights import Tensors, read_tensors
from bitdance.models.loading.bundled import bundled_folder

__all__ = ["Folder", "ModelFiles", "Repository", "open_files"]


class ModelFiles(Protocol):
    """Files of a model, by their names below its folder."""

    @property
    def source(self) -> str:
        """What the user named, for errors."""

    @property
    def names(self) -> frozenset[str]:
        """Names of the files in the folder and in the folders in it."""

    def fetch(self, names: Iterable[str]) -> Path:
        """The folder, after these files are in it."""

    def tensors(self, name: str) -> Tensors:
        """Names, shapes and kinds of the tensors in a ``.safetensors`` file."""


class Folder:
    """Files that are on the disk.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.source = path, str(path)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the files in the folder and in the folders in it."""
        return frozenset(_list(self.path))

    def fetch(self, names: Iterable[str]) -> Path:
        """The folder; whoever reads a file notices that it is missing."""
        return self.path

    def tensors(self, name: str) -> Tensors:
        """The tensors in a ``.safetensors`` file, of which no values are read."""
        return read_tensors(self.path / name)


class Repository:
    """Files of a Hugging Face repository.

    Args:
        source: id "owner/name".
        revision: branch, tag or commit.
        local_files_only: use only files that were downloaded before.
        subfolder: folder of the model in the repository, by default the repository itself.

    Raises:
        FileNotFoundError: `source` is not a repository id, or huggingface_hub is not installed.
    """

    def __init__(
        self, source: str, revision: str | None = None, local_files_only: bool = False,
        subfolder: str | None = None,
    ) -> None:  # fmt: skip
        parts = source.split("/")
        if len(parts) != 2 or not all(parts) or source.startswith((".", "~")):
            raise FileNotFoundError(
                f"{source!r} is not a file, a folder or a repository id of the form owner/name"
            )
        try:
            import huggingface_hub
        except ImportError as error:
            raise FileNotFoundError(
                f"{source!r} is not a file or folder here; to look for it on the Hugging Face hub, "
                "pip install 'bitdance[hub]'"
            ) from error
        self._hub, self._id, self._revision = huggingface_hub, source, revision
        self._local_files_only, self._subfolder = local_files_only, PurePosixPath(subfolder or "")
        self.source = repr(source if subfolder is None else f"{source}/{subfolder}")

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the files below the subfolder, those in folders included.

        One request; without a connection, the files that were downloaded before.

        Raises:
            FileNotFoundError: the repository is not available, or has no such subfolder.
        """
        try:
            if self._local_files_only:
                paths = self._downloaded()
            else:
                paths = self._hub.HfApi().list_repo_files(self._id, revision=self._revision)
        except Exception as error:  # whatever the kind, the repository is not available
            try:
                paths = self._downloaded()
            except Exception:
                raise self._missing(error) from error
        start = "" if self._subfolder == PurePosixPath() else f"{self._subfolder}/"
        names = frozenset(path.removeprefix(start) for path in paths if path.startswith(start))
        if not names:
            raise FileNotFoundError(f"{self.source} has no files")
        return names

    def fetch(self, names: Iterable[str]) -> Path:
        """Download files; returns the local folder.

        Raises:
            FileNotFoundError: the repository or one of the files is not available.
        """
        wanted = sorted(set(names))
        missing = [name for name in wanted if name not in self.names]
        if missing:
            raise FileNotFoundError(f"{self.source} has no file {missing[0]!r}")
        try:
            folder = self._snapshot(wanted, local_files_only=self._local_files_only)
        except Exception as error:  # whatever the kind, the files are not available
            raise self._missing(error) from error
        folder = folder / self._subfolder
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.source} was not found {self._where}: {missing[0]} is not there"
            )
        return folder

    def tensors(self, name: str) -> Tensors:
        """Names, shapes and kinds of the tensors in a file, on the meta device.

        Of a file that was not downloaded before only the head is.

        Raises:
            FileNotFoundError: the repository or the file is not available.
        """
        with contextlib.suppress(Exception):
            path = self._snapshot((), local_files_only=True) / self._subfolder / name
            if path.is_file() or self._local_files_only:
                return read_tensors(path)
        try:
            found = self._hub.HfApi().parse_safetensors_file_metadata(
                self._id, str(self._subfolder / name), revision=self._revision
            )
            return {key: _meta(info) for key, info in found.tensors.items()}
        except Exception as error:  # whatever the kind, the file is not available
            raise self._missing(error) from error

    def _downloaded(self) -> list[str]:
        folder = self._snapshot((), local_files_only=True)
        return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()]

    def _snapshot(self, names: Iterable[str], *, local_files_only: bool) -> Path:
        patterns = [glob.escape(str(self._subfolder / name)) for name in names]
        folder = self._hub.snapshot_download(
            self._id,
            revision=self._revision,
            local_files_only=local_files_only,
            allow_patterns=patterns,
        )
        return Path(folder)

    @property
    def _where(self) -> str:
        return "among the files downloaded before" if self._local_files_only else "on the hub"

    def _missing(self, error: Exception) -> FileNotFoundError:
        return FileNotFoundError(f"{self.source} was not found {self._where}: {one_line(error)}")


def open_files(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False,
    subfolder: str | None = None,
) -> ModelFiles:  # fmt: skip
    """The files of a model in a folder or a repository.

    Args:
        source: folder, the name of a bundled model, or the id "owner/name" of a repository.
        revision: revision of the repository.
        local_files_only: use only files that were downloaded before.
        subfolder: folder of the model in there.

    Raises:
        FileNotFoundError: there is no such folder, subfolder, model or repository.
    """
    path = Path(source)
    if not path.exists():
        bundled = bundled_folder(source)
        if bundled is None:
            return Repository(str(source), revision, local_files_only, subfolder)
        path = bundled
    if subfolder is not None:
        path /= subfolder
    if not path.is_dir():
        raise FileNotFoundError(f"no such folder: {path}")
    return Folder(path)


def _list(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        yield path.name
        with contextlib.suppress(OSError):  # a file, or a folder of somebody else's
            yield from (f"{path.name}/{inside.name}" for inside in path.iterdir())


def _meta(info: Any) -> torch.Tensor:
    dtype = torch.float32 if info.dtype.startswith(("F", "BF")) else torch.uint8
    return torch.empty(info.shape, dtype=dtype, device="meta")
