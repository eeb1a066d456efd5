"""Checkpoints of several processes: a folder in which each process writes its share.

``checkpoint-00000200.tmp`` is written by PyTorch's distributed checkpoint, in the background, while
training goes on. When all shares are on the disk, a marker with the checksum of every file is
written and the folder is renamed. Any number of processes reads it.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from bitdance.distributed import World, WorldError
from bitdance.io.files import CheckpointError, one_line, sha256, sync
from bitdance.io.weights import read_pickle
from bitdance.training.parallel import is_divided, local

__all__ = ["MARKER", "STATE", "ShardedWriter", "read_folder"]

MARKER, STATE, _METADATA = "complete", "state.pt", ".metadata"


class ShardedWriter:
    """Writes one checkpoint after the other, each beside the steps that follow it.

    All processes call its methods alike. Steps wait for a copy of the tensors alone: files,
    checksums and names are made in a thread, which has its own connections to the others.

    Args:
        folder: folder of the run.
        world: the processes.
        published: called in rank 0 with the step of each checkpoint that is complete.
    """

    def __init__(self, folder: Path, world: World, published: Callable[[int], None]) -> None:
        self._folder, self._world, self._published = folder, world.aside(), published
        self._pinned = world.device.type == "cuda"
        self._copies: dict[str, Any] = {}  # which stay: new memory takes longer than the copy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bitdance-checkpoint")
        self._pending: Future[None] | None = None
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether this process has nothing more to do for the last checkpoint."""
        return self._pending is not None and self._pending.done()

    def begin(
        self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
    ) -> None:
        """Begin to write a checkpoint; it returns when tensors and state may change.

        Args:
            step: number of its step.
            tensors: tensors by name, whole or divided.
            state: everything else, as ``read_pickle`` reads it; rank 0 writes its own.
        """
        assert self._pending is None, "finish the one before"
        content = io.BytesIO()
        if self._world.is_main:
            torch.save({**state, "step": step}, content)
        self._copy(_own(tensors, self._world))
        self._pending = self._thread.submit(self._write, step, content.getbuffer())

    def _copy(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if self._copies.keys() == tensors.keys():
            copies = [local(self._copies[name]) for name in tensors]
            torch._foreach_copy_(copies, [local(tensor) for tensor in tensors.values()])
            return
        stager = DefaultStager(StagingOptions(self._pinned, False, False, False))
        found = stager.stage(dict(tensors))
        assert isinstance(found, dict)
        self._copies = found

    def _write(self, step: int, state: memoryview) -> None:
        """Write all shares, then name the checkpoint."""
        world, final = self._world, self._folder / f"checkpoint-{step:08d}"
        path = final.with_suffix(".tmp")
        try:
            with world.together():
                if world.is_main:
                    shutil.rmtree(path, ignore_errors=True)
                    path.mkdir()
                    (path / STATE).write_bytes(state)
            sums: dict[str, str] = {}
            with world.together():
                _save(path, self._copies, world)
                sums = _checksums(path, world)
            shares = world.gather(sums)
            with world.together():
                if world.is_main and not self._closed:
                    _publish(path, final, shares)
                    self._published(step)
        except Exception:
            if world.is_main:
                shutil.rmtree(path, ignore_errors=True)
            raise

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one.

        Raises:
            OSError: a process cannot write its share; the checkpoints before are untouched.
            WorldError: a process is lost.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """End the thread; a checkpoint that is being written gets no name any more."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)


def _own(tensors: Mapping[str, torch.Tensor], world: World) -> dict[str, torch.Tensor]:
    """What this process writes: its parts of divided tensors, and its share of the others."""
    own, sizes = {}, [0] * world.size
    for name in sorted(tensors, key=lambda name: (-tensors[name].numel(), name)):
        if not is_divided(tensors[name]):
            least = min(range(world.size), key=sizes.__getitem__)
            sizes[least] += tensors[name].numel()
            if least != world.rank:
                continue
        own[name] = tensors[name]
    return own


def _save(path: Path, tensors: dict[str, Any], world: World) -> None:
    """Write this process's share; all processes fail together."""
    try:
        with world.watched("checkpoint"):
            save(tensors, checkpoint_id=str(path), process_group=world.group)
    except WorldError:
        raise
    except CheckpointException as error:  # which is no Exception
        causes = (one_line(cause) for cause, _ in error.failures.values())
        raise OSError(f"cannot write {path}: {'; '.join(sorted(set(causes)))}") from error
    except RuntimeError as error:  # torch's error for a failed write
        raise OSError(f"cannot write {path}: {one_line(error)}") from error


def _checksums(path: Path, world: World) -> dict[str, str]:
    """Bring this process's files to the disk; their checksums."""
    own = [*path.glob(f"__{world.rank}_*")]
    if world.is_main:
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
    except (TypeError, ValueError, RecursionError) as error:
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
