"""Reading and writing weights: safe, checked before anything is assigned, never half-written.

Read: the official ImageNet ``.pt`` files (a dict with ``model`` and / or ``ema``, and the training
arguments), the autoencoder's ``.pt`` (a dict with ``state_dict``), what usual trainers write, any
``.safetensors``. Pickles are only opened with ``weights_only``; besides tensors they may hold the
``argparse.Namespace`` of the official checkpoints and nothing else.
"""

from __future__ import annotations

import argparse
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
    one_line,
    publish,
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
    "read_checkpoint",
    "read_pickle",
    "read_tensors",
    "read_weights",
    "save_tensors",
    "split_prefix",
    "write_tensors",
]

Tensors = dict[str, torch.Tensor]

_SHOWN = 8  # names listed per kind of problem
# What torch.save wrote before it wrote archives begins with this number, pickled.
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
# Expanded tensors have more values than the file: no published model has more bytes than these.
_MAX_EXPANDED = 1 << 33
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
    """What a file holds.

    Attributes:
        tensors: name -> tensor, under the names that the model uses.
        arguments: of the training that wrote it; None where it does not say.
    """

    tensors: Tensors
    arguments: Mapping[str, Any] | None = None


def read_weights(path: Path, *, prefer: str = "ema") -> Tensors:
    """All tensors of a checkpoint file, on the CPU, under the names the model uses.

    Args:
        path: a ``.safetensors`` file, or a file of ``torch.save``.
        prefer: "ema" or "model", for files that hold both; the other is taken where one is missing.

    Returns:
        Name -> tensor. What wrappers and trainers put before the names is removed.

    Raises:
        CheckpointError: not a checkpoint, truncated, altered, or a pickle that holds anything but
            tensors; or it does not tell which of its tensors are the weights.
        FileNotFoundError: no such file.
    """
    return read_checkpoint(path, prefer=prefer).tensors


def read_checkpoint(path: Path, *, prefer: str = "ema") -> Checkpoint:
    """As ``read_weights``, with the arguments of the training where the file has them."""
    if prefer not in ("ema", "model"):
        raise ValueError(f"read_weights: prefer must be 'ema' or 'model', got {prefer!r}")
    check_checksum(require_file(path))
    if _is_safetensors(path):
        return Checkpoint(normalize_names(read_tensors(path), prefer, str(path)))
    content = read_pickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    tensors = select_state_dict(content, prefer, str(path))
    _check_kinds(path, tensors)
    arguments = content.get("args")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    if not isinstance(arguments, Mapping):
        arguments = None
    return Checkpoint(normalize_names(tensors, prefer, str(path)), arguments)


def read_tensors(path: Path) -> Tensors:
    """All tensors of a safetensors file, as they are named there.

    They are mapped: what is not used is not read.

    Raises:
        CheckpointError: not a whole safetensors file.
        FileNotFoundError: no such file.
    """
    _refuse_other_content(require_file(path))
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except Exception as error:  # a damaged header has many ways to fail
        message = f"{path} is not a whole safetensors file: {one_line(error)}"
        raise CheckpointError(message) from error


def read_pickle(path: Path) -> Any:
    """What ``torch.save`` wrote, in its present or its older format, on the CPU.

    Raises:
        CheckpointError: not such a file, truncated, altered, or with Python objects other than
            tensors and an ``argparse.Namespace``.
        FileNotFoundError: no such file.
    """
    head = _refuse_other_content(require_file(path))
    try:
        if head.startswith(b"PK"):
            _check_archive(path)
        elif _LEGACY not in head[:32]:
            raise CheckpointError(f"{path} is not a whole checkpoint file: it begins as none")
        # Threads that leave the context take from each other what it allows.
        with _READING, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            message = f"{path} is not a whole checkpoint file: {one_line(error)}"
            raise CheckpointError(message) from error
        raise CheckpointError(
            f"{path} holds Python objects other than tensors ({found.group(1)}), which could run "
            "code; it was not opened"
        ) from error
    except Exception as error:  # a damaged pickle can fail in every way that Python has
        message = f"{path} is not a whole checkpoint file: {one_line(error)}"
        raise CheckpointError(message) from error


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    # The length of the header, which is JSON. A pickle begins otherwise.
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _refuse_other_content(path: Path) -> bytes:
    """The beginning of a file; what people often have in its place is named."""
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        problem = "a pointer of Git LFS, not the file itself; get that with `git lfs pull`"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        problem = "a web page, not a checkpoint; download the file itself"
    else:
        return head
    raise CheckpointError(f"{path} is {problem}")


def _check_archive(path: Path) -> None:
    """Compare the checksums of an archive's records, which torch.load does not do.

    torch.save does not compress: what is compressed could be inflated without end.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = [r.filename for r in records if r.compress_type != zipfile.ZIP_STORED]
        claimed = sum(r.file_size for r in records)
        if packed or claimed > size:
            problem = f"{packed[0]} in it is compressed" if packed else f"it claims {claimed} bytes"
            raise CheckpointError(
                f"{path} ({size} bytes) is not a whole checkpoint file: {problem}, which "
                "torch.save does not write"
            )
        spoiled = archive.testzip()
    if spoiled is not None:
        raise CheckpointError(f"{path} is altered: the checksum of {spoiled} is wrong")


def _check_kinds(path: Path, tensors: Tensors) -> None:
    """Refuse tensors that are no plain arrays of numbers, or far more of them than bytes."""
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
            raise CheckpointError(f"{path}: up to {name} its tensors have {total} bytes expanded")


def check_checksum(path: Path) -> None:
    """Compare a file with the ``.sha256`` file beside it, if there is one (of ``sha256sum``).

    Raises:
        CheckpointError: it is altered, or the checksums beside it are not of this file.
    """
    sums = _checksums(path)
    if not sums.exists():
        return
    try:
        lines = require_file(sums).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{sums} is no file of checksums: {one_line(error)}") from error
    found = [match for match in map(_CHECKSUM.fullmatch, lines) if match]
    named = [m for m in found if Path(m["name"] or m["tagged"] or path.name).name == path.name]
    if not named:
        raise CheckpointError(
            f"{sums} must have the SHA-256 of {path.name}, as sha256sum writes it"
        )
    if sha256(path) != (named[0]["sum"] or named[0]["of"]).lower():
        raise CheckpointError(f"{path} is altered: its checksum is not the one in {sums}")


def check_weights(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: str,
    *,
    values: bool = True,
) -> None:
    """Check that `tensors` are exactly the state of `module`: names, shapes, kinds, finite values.

    Args:
        module: the model, perhaps on the meta device.
        tensors: name -> tensor.
        source: where they come from, for messages.
        values: look at values too; without that nothing of a mapped file is read.

    Raises:
        CheckpointError: with every missing, unexpected, misshapen, mistyped and non-finite tensor.
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
    found = [f"{len(names)} {kind}: {_few(names)}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}, nothing was loaded; "
            + "; ".join(found)
        )


def _same_kind(got: torch.dtype, expected: torch.dtype) -> bool:
    return got in (_FLOATS if expected.is_floating_point else _INTEGERS)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is infinite or NaN: a single pass, in a tenth of the time of isfinite."""
    if tensor.element_size() == 1:  # PyTorch orders no 8-bit floats
        tensor = tensor.float()
    return tensor.numel() == 0 or all(bool(end.isfinite()) for end in torch.aminmax(tensor))


def load_weights(module: torch.nn.Module, tensors: Tensors, source: str) -> None:
    """Put `tensors` into `module`, all or none, cast to the dtypes that the module has.

    Args:
        module: the model; one on the meta device gets memory of its own, filled once.
        tensors: its whole state.
        source: where they come from, for messages.

    Raises:
        CheckpointError: they do not fit; the module is unchanged.
    """
    check_weights(module, tensors, source)
    state = module.state_dict()
    on_meta = any(tensor.is_meta for tensor in state.values())
    if on_meta:
        # Copied, since tensors of a mapped file begin at any address: products would be slower, and
        # rounded otherwise than those of the same weights from another file.
        tensors = {k: tensors[k].to(tensor.dtype, copy=True) for k, tensor in state.items()}
    module.load_state_dict(tensors, strict=True, assign=on_meta)


def split_prefix(tensors: Tensors, prefix: str) -> tuple[Tensors, Tensors]:
    """The tensors below `prefix` (without it), and the others."""
    below = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return below, {k: v for k, v in tensors.items() if not k.startswith(prefix)}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file, whole or not at all, and the checksum that reading compares.

    That is in the file "<name>.sha256" beside it, as of ``sha256sum``.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    sums = _checksums(path)
    with temporary_file(path) as temporary:
        save_tensors(temporary, tensors)
        digest = sha256(temporary)
        # In this order: whoever is killed in between leaves a file that can be read.
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


def _few(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
