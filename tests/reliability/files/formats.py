"""Every format that the library stores, and how a file of it is judged after damage."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Format", "Unchecked", "digest", "registry"]


@dataclass(frozen=True)
class Unchecked:
    """Files in which a flipped bit may go unnoticed, since they have no checksum.

    Attributes:
        why: the reason, for readers.
        cuts: whether the loss of their end may go unnoticed too.
    """

    why: str
    cuts: bool = False


@dataclass(frozen=True)
class Format:
    """A stored format.

    Attributes:
        name: short and unique.
        make: writes a sample, as the library does, into an empty folder.
        load: reads it; returns what equal contents have in common.
        errors: types that `load` may raise, those of the documentation.
        unchecked: by pattern of a file's path in the folder, what has no checksum.
        readers: "module.function" of the library that reads it, for the registry's test.
        needs: packages without which it is left out.
    """

    name: str
    make: Callable[[Path], object]
    load: Callable[[Path], object]
    errors: tuple[type[Exception], ...]
    unchecked: Mapping[str, Unchecked] = field(default_factory=dict)
    readers: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def why_silent(self, file: str) -> Unchecked | None:
        """What is said of a file without a checksum, None for all others."""
        found = (u for pattern, u in self.unchecked.items() if fnmatch.fnmatch(file, pattern))
        return next(found, None)


def registry() -> tuple[Format, ...]:
    """All formats whose packages are installed."""
    from tests.reliability.files import formats_data, formats_models, formats_pictures

    formats = (*formats_models.FORMATS, *formats_data.FORMATS, *formats_pictures.FORMATS)
    assert len({each.name for each in formats}) == len(formats)
    return tuple(f for f in formats if all(importlib.util.find_spec(name) for name in f.needs))


def digest(*values: object) -> str:
    """A checksum of nested values, equal for equal contents."""
    result = hashlib.sha256()
    _add(result, values)
    return result.hexdigest()


def _add(result: Any, value: object) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        result.update(f"{value.dtype} {list(value.shape)}".encode())
        result.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray):
        result.update(f"{value.dtype} {value.shape}".encode())
        result.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            result.update(f"{key!r}:".encode(errors="surrogatepass"))
            _add(result, value[key])
    elif isinstance(value, list | tuple):
        result.update(f"[{len(value)}".encode())
        for item in value:
            _add(result, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _add(result, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    else:
        result.update(f"{type(value).__name__} {value!r}".encode(errors="surrogatepass"))
