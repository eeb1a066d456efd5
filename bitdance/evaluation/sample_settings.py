"""What the samples of a folder depend on, in a file that later commands compare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bitdance.io.files import write_text
from bitdance.io.json_files import read_json
from bitdance.io.settings import parse
from bitdance.io.validation import brief

__all__ = ["FORMAT", "fingerprint", "read_settings", "write_settings"]

FORMAT = "bitdance-samples-1"
T = TypeVar("T")


def read_settings(file: Path, wanted: T, free: frozenset[str] = frozenset()) -> T:
    """The settings in a file, once it is clear that they are those that are wanted.

    Args:
        file: file of `write_settings`.
        wanted: settings of the new samples.
        free: names of fields that may differ.

    Raises:
        ValueError: the file is damaged, or others differ, which are named.
    """
    content: dict[str, Any] = read_json(file)
    got = content.pop("format", None)
    if got != FORMAT:
        raise ValueError(f"{file}: format must be {FORMAT!r}, got {brief(got)}")
    found = parse(type(wanted), content, str(file))
    changed = [
        f"{field.name} (was {brief(old)}, is {brief(new)})"
        for field in dataclasses.fields(found)  # type: ignore[arg-type]
        if (old := getattr(found, field.name)) != (new := getattr(wanted, field.name))
        and field.name not in free
    ]
    if changed:
        raise ValueError(
            f"{file.parent} holds samples with other settings: {', '.join(changed)}; keep these, "
            "or choose another folder"
        )
    return found


def write_settings(file: Path, settings: Any) -> None:
    """Write settings, completely or not at all."""
    content = {"format": FORMAT, **dataclasses.asdict(settings)}
    write_text(file, json.dumps(content, indent=1) + "\n")


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers with their names, shapes and dtypes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().flatten()
        digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()
