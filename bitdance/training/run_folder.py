"""The folder of a run, and the configuration that it may be resumed with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitdance.io.validation import brief
from bitdance.training.config import RunConfig, read_config, run_to_dict

__all__ = ["check_same_run", "check_single_process", "rename_exports"]

_CHANGEABLE = {
    "optim.steps", "optim.log_every", "optim.save_every", "optim.sample_every", "optim.keep",
    "data.path", "data.classes", "data.on_error", "data.cache",
    "autoencoder_path", "num_inference_steps", "model.cfg_scale", "prompts", "guidance_scale",
    "tokenizer_path",
    "parallel.strategy", "parallel.activation_checkpointing", "parallel.compile",
}  # fmt: skip
"""Settings that do not affect the weights. Data and autoencoder are compared by their content."""


def check_single_process() -> None:
    """Check that this is the only process: several would write the same files.

    Raises:
        RuntimeError: WORLD_SIZE in the environment, which torchrun sets, is not 1.
    """
    size = os.environ.get("WORLD_SIZE", "1").strip() or "1"
    if size != "1":
        raise RuntimeError(
            f"Trainer: world must be World.from_env() where WORLD_SIZE is {brief(size)}, got None"
        )


def check_same_run(folder: Path, config: RunConfig, step: int) -> RunConfig:
    """Check that the run in a folder can be resumed with a configuration.

    Args:
        folder: folder of the run.
        config: the new configuration.
        step: step of the newest checkpoint.

    Returns:
        The configuration that the run had.

    Raises:
        ValueError: they differ in settings that affect the weights, all of which are named, or the
            run is past the last step of the new one.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise ValueError(f"{folder} has checkpoints but no config.toml")
    earlier = read_config(path)
    old, new = (dict(_flat(run_to_dict(c))) for c in (earlier, config))
    names = [name for name in {**old, **new} if name not in _CHANGEABLE]
    changed = [
        f"{name} (was {brief(old.get(name))}, is {brief(new.get(name))})"
        for name in names
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with another configuration: {', '.join(changed)}; keep these "
            "settings, or choose another folder"
        )
    if config.optim.steps < step:
        raise ValueError(
            f"optim.steps must be at least {step}, which the run in {folder} has reached, got "
            f"{config.optim.steps}"
        )
    return earlier


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def rename_exports(folder: Path, names: tuple[str, ...], step: int) -> None:
    """Add `step` to the names of what a run exported there, before it is continued."""
    for name in names:
        path = folder / name
        target = path.with_name(f"{path.stem}-{step:08d}{path.suffix}")
        if path.exists() and not target.exists():
            path.rename(target)
