"""Checkpoints of several processes: a folder in which each process writes its share.

``checkpoint-00000200.tmp`` is written by PyTorch's distributed checkpoint, in the background, while
training goes on. When all shares are on the disk, a marker with the checksum of every file is
written and the folder is renamed. Any number of processes reads it.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from bitdance.distributed import World
from bitdance.io.files import CheckpointError, one_line, sha256, sync
from bitdance.io.weights import read_pickle

__all__ = ["MARKER", "STATE", "ShardedWriter", "read_folder"]

MARKER, STATE, _METADATA = "complete", "state.pt", ".metadata"


class ShardedWriter:
    """Writes one checkpoint after the other, each beside the steps that follow it.

    All processes call its methods alike.

    Args:
        folder: folder of the run.
        world: the processes.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self._folder, self._world = folder, world
        # Its own connections, since its thread works beside the steps.
        self._group = dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bitdance-checkpoint")
        self._pending: tuple[Path, Future[dict[str, str]]] | None = None

    @property
    def ready(self) -> bool:
        """Whether this process has written its share."""
        return self._pending is not None and self._pending[1].done()

    def begin(
        self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
    ) -> None:
        """Begin to write a checkpoint; it returns when the tensors may change.

        Args:
            step: number of its step.
            tensors: tensors by name, whole or divided.
            state: everything else, as ``read_pickle`` reads it; rank 0 writes its own.

        Raises:
            OSError: the folder cannot be written.
        """
        assert self._pending is None, "finish the one before"
        path = self._folder / f"checkpoint-{step:08d}.tmp"
        with self._world.together():
            if self._world.is_main:
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                torch.save({**state, "step": step}, path / STATE)
        with self._world.watched("checkpoint"):
            written = async_save(dict(tensors), checkpoint_id=str(path), process_group=self._group)
        assert isinstance(written, Future)
        self._pending = path, self._thread.submit(_checksums, path, written, self._world.rank)

    def finish(self) -> Path | None:
        """Wait for the checkpoint that is being written, and give it its name.

        Returns:
            Its folder; None if none is being written.

        Raises:
            OSError: a process cannot write its share; the checkpoints before are untouched.
        """
        if self._pending is None:
            return None
        (path, written), self._pending = self._pending, None
        try:
            with self._world.together():
                sums = written.result()
            shares = self._world.gather(sums)
            final = path.with_suffix("")
            with self._world.together():
                if self._world.is_main:
                    _publish(path, final, shares)
        except Exception:
            if self._world.is_main:
                shutil.rmtree(path, ignore_errors=True)
            raise
        return final

    def close(self) -> None:
        """End the thread, whatever becomes of a checkpoint that is being written."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _checksums(path: Path, written: Future[Any], rank: int) -> dict[str, str]:
    """Wait until all shares are written; the checksums of this process's files."""
    try:
        written.result()
    except CheckpointException as error:  # which is no Exception
        causes = (one_line(cause) for cause, _ in error.failures.values())
        raise OSError(f"cannot write {path}: {'; '.join(sorted(set(causes)))}") from error
    except RuntimeError as error:  # torch's error for a failed write
        raise OSError(f"cannot write {path}: {one_line(error)}") from error
    own = [*path.glob(f"__{rank}_*")]
    if rank == 0:
        own += [path / STATE, path / _METADATA]
    for file in own:
        sync(file)
    return {file.name: sha256(file) for file in own}


def _publish(path: Path, final: Path, shares: list[dict[str, str]]) -> None:
    sums = {name: value for share in shares for name, value in share.items()}
    marker = path / MARKER
    marker.write_text(json.dumps(sums, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sync(marker)
    sync(path)
    if final.exists():  # damaged, or it would not be written again
        shutil.rmtree(final)
    path.rename(final)
    final.with_suffix(".pt").unlink(missing_ok=True)
    sync(final.parent)


def read_folder(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Whole tensors of a checkpoint by name, and everything else.

    Raises:
        CheckpointError: a file is missing or altered, or contains code.
    """
    _verify(path)
    _check_metadata(path / _METADATA)
    state = read_pickle(path / STATE)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / STATE} must hold a dict, got {type(state).__name__}")
    try:
        found = FileSystemReader(path).read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu")
            for name, entry in found.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(tensors, checkpoint_id=str(path), no_dist=True)
    except (CheckpointException, Exception) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from error
    return tensors, state


def _verify(path: Path) -> None:
    marker = path / MARKER
    if not marker.is_file():
        raise CheckpointError(f"{path} is not complete")
    try:
        sums = dict(json.loads(marker.read_text(encoding="utf-8")))
    except ValueError as error:
        raise CheckpointError(f"{marker} is damaged: {one_line(error)}") from error
    if not {STATE, _METADATA} <= sums.keys():
        raise CheckpointError(f"{marker} is damaged: it does not name all files")
    for name, expected in sums.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path} has no {name}")
        if sha256(path / name) != expected:
            raise CheckpointError(f"{path / name} does not have the checksum in {MARKER}")


class _Checker(pickle.Unpickler):
    """Reads PyTorch's description of a checkpoint, a pickle, and refuses code in it."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _DATA.get(module, ()):
            raise CheckpointError(f"it contains Python objects ({module}.{name})")
        return super().find_class(module, name)


_DATA = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties",
        "_MEM_FORMAT_ENCODING", "ChunkStorageMetadata", "MetadataIndex", "StorageMeta",
    ),
    "pathlib": ("Path", "PosixPath", "WindowsPath"),
}  # fmt: skip


def _check_metadata(path: Path) -> None:
    try:
        with path.open("rb") as file:
            _Checker(file).load()
    except Exception as error:  # a damaged pickle can raise any error
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from error
