"""The folder of a run: one process at a time, and the configuration that it goes on with."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitdance.io.validation import shown
from bitdance.training.config import RunConfig, read_config

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock", "check_same_run", "check_single_process", "set_aside"]

_LOCK = ".lock"
_FREE = {
    "optim.steps", "optim.log_every", "optim.save_every", "optim.picture_every", "optim.keep",
    "data.path", "data.classes", "data.on_error",
    "autoencoder_path", "sample_steps", "model.cfg_scale",
}  # fmt: skip
"""What does not decide the weights; of data and autoencoder the content does, and is compared."""


class FolderLock:
    """Holds a folder for this process until it is released, collected, or the process ends.

    Where a system or a disk has no locks, nothing is held and nothing is refused.

    Args:
        folder: which exists.

    Raises:
        OSError: another run holds it, or its lock file cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        descriptor = None if fcntl is None else _lock(folder / _LOCK)
        self.release = weakref.finalize(self, _unlock, descriptor, folder / _LOCK)


def _lock(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OSError(f"{path.parent} is in use by another run") from error
        except OSError:  # not on this disk
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # whoever had it removed the file in between


def _unlock(descriptor: int | None, path: Path) -> None:
    if descriptor is not None:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def check_single_process() -> None:
    """Refuse to be one of several processes, which would train the same and write the same files.

    Raises:
        RuntimeError: the environment's WORLD_SIZE, as torchrun sets it, is not 1.
    """
    size = os.environ.get("WORLD_SIZE", "1").strip() or "1"
    if size != "1":
        raise RuntimeError(
            f"train: WORLD_SIZE must be 1 or unset, got {shown(size)}: a run is one process on one "
            "device; start it without torchrun"
        )


def check_same_run(folder: Path, config: RunConfig, step: int) -> RunConfig:
    """Check that `config` may go on with what `folder` holds.

    Args:
        folder: of a run that reached `step`.
        config: to go on with.
        step: of the newest checkpoint.

    Returns:
        The run's configuration until now.

    Raises:
        ValueError: they differ in what decides the weights, each field of which is named, or the
            run is past its last step.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise ValueError(f"{folder} has checkpoints but no config.toml to say of what run")
    before = read_config(path)
    old, new = (dict(_flat(c.to_dict())) for c in (before, config))
    names = [name for name in {**old, **new} if name not in _FREE]
    changed = [
        f"{name} (was {shown(old.get(name))}, is {shown(new.get(name))})"
        for name in names
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with another configuration: {', '.join(changed)}; go on with "
            "what it was, or choose another folder"
        )
    if config.optim.steps < step:
        raise ValueError(
            f"optim.steps must be at least {step}, which the run in {folder} has reached, got "
            f"{config.optim.steps}"
        )
    return before


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_aside(folder: Path, names: tuple[str, ...], step: int) -> None:
    """Give what a run exported at `step` that step in its name, where it goes on from there."""
    for name in names:
        path = folder / name
        target = path.with_name(f"{path.stem}-{step:08d}{path.suffix}")
        if path.exists() and not target.exists():
            path.rename(target)
