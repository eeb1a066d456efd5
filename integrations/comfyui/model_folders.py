"""Models below ComfyUI's folder of models, ``models/bitdance`` or others of that name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import folder_paths

__all__ = ["CLASSES", "TEXT", "fingerprint", "model_names", "model_path"]

CLASSES, TEXT = "classes", "text"
"""Kinds of models."""

_NAME = "bitdance"
_CONFIGS = ("config.json", "model_index.json")
_DEPTH = 2  # "model" or "owner/model"

# extra_model_paths.yaml may have added others before.
folder_paths.add_model_folder_path(_NAME, os.path.join(folder_paths.models_dir, _NAME))


def model_names(kind: str) -> list[str]:
    """Names of the models of a kind, by their paths below the folders, with "/".

    A folder with ``config.json``, ``model_index.json`` or ``.safetensors`` files is a model, of
    classes if this library has saved it. A file of weights outside of such folders is a model of
    classes, as the authors publish them.
    """
    return sorted({name for name, found, _ in _models() if found == kind})


def model_path(kind: str, name: str) -> Path:
    """Path of a model that ``model_names`` lists.

    Raises:
        FileNotFoundError: no model has this name.
    """
    for found_name, found, path in _models():
        if (found_name, found) == (name, kind):
            return path
    folders = ", ".join(folder_paths.get_folder_paths(_NAME))
    raise FileNotFoundError(f"no model of {kind} named {name!r} in {folders}")


def fingerprint(path: Path) -> str:
    """Names, sizes and times of a model's files: other text for other files."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    states = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return json.dumps(states)


def _models() -> Iterator[tuple[str, str, Path]]:
    """Name, kind and path of every model; the first of a name counts."""
    for root in map(Path, folder_paths.get_folder_paths(_NAME)):
        yield from _models_in(root, root, _DEPTH)


def _models_in(root: Path, folder: Path, depth: int) -> Iterator[tuple[str, str, Path]]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:  # it does not exist, or must not be read
        return
    for entry in entries:
        name = entry.relative_to(root).as_posix()
        if entry.is_dir():
            kind = _kind(entry)
            if kind is not None:
                yield name, kind, entry
            elif depth > 1 and not entry.name.startswith("."):
                yield from _models_in(root, entry, depth - 1)
        elif entry.suffix in (".pt", ".safetensors"):
            yield name, CLASSES, entry


def _kind(folder: Path) -> str | None:
    """Kind of the model in a folder, None if there is none."""
    if any((folder / name).is_file() for name in _CONFIGS):
        return CLASSES if _is_saved(folder / _CONFIGS[0]) else TEXT
    return TEXT if any(folder.glob("*.safetensors")) else None


def _is_saved(config: Path) -> bool:
    """Whether a configuration is one that ``BitDancePipeline.save_pretrained`` writes."""
    try:
        content = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and str(content.get("format")).startswith("bitdance-")
