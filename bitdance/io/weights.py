"""Weights in files: read safely, checked before they are assigned, written atomically.

Supported are ``.safetensors`` files and pickles of ``torch.save``: the official ImageNet ``.pt``
files (a dict with ``model`` and / or ``ema``, and the training arguments), the autoencoder's
``.pt`` (a dict with ``state_dict``), and what common trainers write. Pickles are only opened with
``weights_only``; besides tensors they may contain the ``argparse.Namespace`` of official files.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import threading
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from bitdance.io.files import (
    CheckpointError,
    locked,
    one_line,
    publish,
    read_consistently,
    require_file,
    sha256,
    temporary_file,
    write_text,
)
from bitdance.io.state_names import normalize_names, select_state_dict

__all__ = [
    "Checkpoint",
    "Tensors",
    "check_checksum",
    "check_weights",
    "is_finite",
    "load_weights",
    "publish_tensors",
    "read_checkpoint",
    "read_pickle",
    "read_tensors",
    "read_weights",
    "save_tensors",
    "split_prefix",
    "write_tensors",
]

Tensors = dict[str, torch.Tensor]

_MAX_NAMES = 8  # names listed per kind of problem
# Files of torch.save before it wrote archives begin with this pickled number.
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
# Bytes that tensors may have beyond the file, where a view repeats stored values.
_MAX_EXPANDED = 1 << 33
_MAX_SUMS = 1 << 24  # bytes of a file of checksums, which may be of many files
_FLOATS = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
}  # fmt: skip
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
# A line of ``sha256sum``, or of ``sha256sum --tag``.
_CHECKSUM = re.compile(
    r"\s*(?:(?P<sum>[0-9a-fA-F]{64})(?:\s+\*?(?P<name>\S.*?))?"
    r"|SHA256 \((?P<tagged>.*)\) = (?P<of>[0-9a-fA-F]{64}))\s*"
)
_READING = threading.Lock()


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file.

    Attributes:
        tensors: tensors by the names that the model uses.
        arguments: arguments of the training script that wrote it, None where it has none.
    """

    tensors: Tensors
    arguments: Mapping[str, Any] | None = None


def read_weights(path: Path, *, prefer: str = "ema") -> Tensors:
    """All tensors of a checkpoint file, on the CPU, by the names that the model uses.

    Args:
        path: a ``.safetensors`` file, or a file of ``torch.save``.
        prefer: "ema" or "model", for files that contain both; a missing one is replaced by the
            other.

    Returns:
        Tensors by name, without the prefixes of wrappers and trainers.

    Raises:
        CheckpointError: the file is not a checkpoint, is truncated or altered, contains Python
            objects, or does not show which of its tensors are the weights.
        FileNotFoundError: there is no such file.
    """
    return read_checkpoint(path, prefer=prefer).tensors


def read_checkpoint(path: Path, *, prefer: str = "ema") -> Checkpoint:
    """Like ``read_weights``, with the arguments of the training script where the file has them."""
    if prefer not in ("ema", "model"):
        raise ValueError(f"read_weights: prefer must be 'ema' or 'model', got {prefer!r}")
    # A writer may be between the file and its checksum; the file by itself is always whole.
    read_consistently(path.parent, lambda: check_checksum(require_file(path)))
    if _is_safetensors(path):
        return Checkpoint(normalize_names(read_tensors(path), prefer, str(path)))
    content = read_pickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} must be a dict of tensors, got a {type(content).__name__}")
    tensors = select_state_dict(content, prefer, str(path))
    _check_kinds(path, tensors)
    arguments = content.get("args")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    if not isinstance(arguments, Mapping):
        arguments = None
    return Checkpoint(normalize_names(tensors, prefer, str(path)), arguments)


def read_tensors(path: Path) -> Tensors:
    """All tensors of a safetensors file by their names there.

    They are memory-mapped: what is not used is not read.

    Raises:
        CheckpointError: the file is not a complete safetensors file.
        FileNotFoundError: there is no such file.
    """
    _refuse_other_content(require_file(path))
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except Exception as error:  # a damaged header can raise many errors
        message = f"{path} is not a complete safetensors file: {one_line(error)}"
        raise CheckpointError(message) from error


def read_pickle(path: Path) -> Any:
    """The content of a file of ``torch.save``, in its current or its old format, on the CPU.

    Raises:
        CheckpointError: the file is something else, is truncated or altered, or contains Python
            objects other than tensors and an ``argparse.Namespace``.
        FileNotFoundError: there is no such file.
    """
    head = _refuse_other_content(require_file(path))
    try:
        if head.startswith(b"PK"):
            _check_archive(path)
        elif _LEGACY not in head[:32]:
            raise CheckpointError(f"{path} is not a complete checkpoint file: unknown format")
        # The context is global: a thread that leaves it would revoke what another still needs.
        with _READING, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        if match is None:
            message = f"{path} is not a complete checkpoint file: {one_line(error)}"
            raise CheckpointError(message) from error
        raise CheckpointError(
            f"{path} contains Python objects other than tensors ({match.group(1)}), which could "
            "run code; it was not opened"
        ) from error
    except Exception as error:  # a damaged pickle can raise any error
        message = f"{path} is not a complete checkpoint file: {one_line(error)}"
        raise CheckpointError(message) from error


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    # The length of the header, which is JSON.
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _refuse_other_content(path: Path) -> bytes:
    """The first bytes of a file; refuses what is often downloaded instead of it."""
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        problem = "a Git LFS pointer, not the file itself; run `git lfs pull`"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        problem = "a web page, not a checkpoint; download the file itself"
    else:
        return head
    raise CheckpointError(f"{path} is {problem}")


def _check_archive(path: Path) -> None:
    """Compare the checksums of an archive's records, which torch.load does not do.

    torch.save never compresses: a compressed record could inflate without end.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = [r.filename for r in records if r.compress_type != zipfile.ZIP_STORED]
        claimed = sum(r.file_size for r in records)
        if packed or claimed > size:
            problem = f"{packed[0]} in it is compressed" if packed else f"it claims {claimed} bytes"
            raise CheckpointError(
                f"{path} ({size} bytes) is not a complete checkpoint file: {problem}, which "
                "torch.save does not write"
            )
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{path} is altered: the checksum of {damaged} differs")


def _check_kinds(path: Path, tensors: Tensors) -> None:
    """Refuse tensors that are not dense, or are far larger than the file."""
    total, limit = 0, 2 * path.stat().st_size + _MAX_EXPANDED
    for name, t in tensors.items():
        kind = "" if type(t) in (torch.Tensor, torch.nn.Parameter) else type(t).__name__
        kind = kind or ("meta" if t.is_meta else "quantized" if t.is_quantized else "")
        if not kind and (t.is_nested or t.layout != torch.strided):
            kind = "nested" if t.is_nested else str(t.layout).removeprefix("torch.")
        if kind:
            raise CheckpointError(f"{path}: {name} must be a dense tensor of numbers, got {kind}")
        total += t.numel() * t.element_size()
        if total > limit:
            raise CheckpointError(f"{path}: up to {name} its tensors have {total} bytes")


def check_checksum(path: Path) -> None:
    """Compare a file with the ``.sha256`` file of ``sha256sum`` beside it, if there is one.

    Raises:
        CheckpointError: the file is altered, or the other one has no checksum of it.
        FileNotFoundError: the other one is a broken link.
    """
    sums = _checksums(path)
    if not os.path.lexists(sums):
        return
    if (size := require_file(sums).stat().st_size) > _MAX_SUMS:
        raise CheckpointError(f"{sums} has {size} bytes, too many for a file of checksums")
    try:
        lines = sums.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{sums} is not a file of checksums: {one_line(error)}") from error
    matches = [match for match in map(_CHECKSUM.fullmatch, lines) if match]
    named = [m for m in matches if Path(m["name"] or m["tagged"] or path.name).name == path.name]
    if not named:
        raise CheckpointError(
            f"{sums} must have the SHA-256 of {path.name}, as sha256sum writes it"
        )
    if sha256(path) != (named[0]["sum"] or named[0]["of"]).lower():
        raise CheckpointError(f"{path} is altered: its checksum differs from {sums}")


def check_weights(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: str,
    *,
    values: bool = True,
) -> None:
    """Check that `tensors` are the state of `module`: names, shapes, kinds and finite values.

    Args:
        module: the model, perhaps on the meta device.
        tensors: tensors by name.
        source: their origin, for errors.
        values: check the values too, which reads all of a memory-mapped file.

    Raises:
        CheckpointError: some do not fit; the message lists them.
    """
    state = module.state_dict()
    both = [name for name in state if name in tensors]
    problems = {
        "missing": [name for name in state if name not in tensors],
        "unexpected": [name for name in tensors if name not in state],
        "of another shape": [
            f"{name} ({list(tensors[name].shape)}, expected {list(state[name].shape)})"
            for name in both
            if tensors[name].shape != state[name].shape
        ],
        "of another kind": [
            f"{name} ({tensors[name].dtype}, expected {state[name].dtype})"
            for name in both
            if not _same_kind(tensors[name].dtype, state[name].dtype)
        ],
        "not finite": [
            name
            for name in both
            if values
            and tensors[name].shape == state[name].shape
            and tensors[name].dtype in _FLOATS
            and not is_finite(tensors[name])
        ],
    }
    parts = [f"{len(names)} {kind}: {_list(names)}" for kind, names in problems.items() if names]
    if parts:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}, nothing was loaded; "
            + "; ".join(parts)
        )


def _same_kind(got: torch.dtype, expected: torch.dtype) -> bool:
    return got in (_FLOATS if expected.is_floating_point else _INTEGERS)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, in a tenth of the time of ``isfinite().all()``."""
    if tensor.element_size() == 1:  # aminmax has no 8-bit floats
        tensor = tensor.float()
    return tensor.numel() == 0 or all(bool(end.isfinite()) for end in torch.aminmax(tensor))


def load_weights(module: torch.nn.Module, tensors: Tensors, source: str) -> None:
    """Load `tensors` into `module`, all or none, cast to the dtypes of the module.

    Args:
        module: the model; on the meta device, it gets new memory.
        tensors: its complete state.
        source: their origin, for errors.

    Raises:
        CheckpointError: they do not fit; the module is unchanged.
    """
    check_weights(module, tensors, source)
    state = module.state_dict()
    on_meta = any(tensor.is_meta for tensor in state.values())
    if on_meta:
        # Copied, since tensors of a memory-mapped file may be unaligned: matrix products would be
        # slower, and rounded differently from those of the same weights in another file.
        tensors = {k: tensors[k].to(t.dtype, copy=True) for k, t in state.items()}
    module.load_state_dict(tensors, strict=True, assign=on_meta)


def split_prefix(tensors: Tensors, prefix: str) -> tuple[Tensors, Tensors]:
    """The tensors below `prefix` (without it), and the others."""
    below = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return below, {k: v for k, v in tensors.items() if not k.startswith(prefix)}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file, completely or not at all, with its checksum for later readers.

    The checksum is in the file "<name>.sha256" beside it, as ``sha256sum`` writes it.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    with temporary_file(path) as temporary:
        save_tensors(temporary, tensors)
        with locked(path.parent):
            publish_tensors(temporary, path)


def publish_tensors(temporary: Path, path: Path) -> None:
    """Rename a finished safetensors file to `path`, and write its checksum.

    The caller holds the lock of the folder, so that no other writer's checksum comes between.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    sums, digest = _checksums(path), sha256(temporary)
    # In this order, a process that is killed in between leaves a readable file.
    sums.unlink(missing_ok=True)
    publish(temporary, path)
    write_text(sums, f"{digest}  {path.name}\n")


def _checksums(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file in place.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        safetensors.torch.save_file(contiguous, path)
    except safetensors.SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
