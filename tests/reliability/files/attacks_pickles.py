"""Attacks by pickles and by the archives around them."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance.data.packed_files import INDEX, index_digest
from tests.reliability.files.attack import CANARY, Attack
from tests.reliability.files.mutations import rezipped

__all__ = ["archives", "each", "npy", "pickles", "put_array", "put_index"]


class _Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _payloads() -> Mapping[str, bytes]:
    """Pickles that make a file "canary" in the working folder when they are read."""
    touch = f"open('{CANARY}', 'w')"
    calls = {
        "os.mkdir": _Call(os.mkdir, CANARY), "os.system": _Call(os.system, f"touch {CANARY}"),
        "eval": _Call(eval, touch), "exec": _Call(exec, touch), "open": _Call(open, CANARY, "w"),
        "partial": _Call(partial(os.mkdir, CANARY)),
        "numpy.save": _Call(np.save, CANARY, 1), "torch.save": _Call(torch.save, 1, CANARY),
    }  # fmt: skip
    found = {name: pickle.dumps({"model": {"w": call}}, 2) for name, call in calls.items()}
    found["INST"] = f"(S'touch {CANARY}'\nios\nsystem\n.".encode()
    found["OBJ"] = b"(cos\nmkdir\nS'" + CANARY.encode() + b"'\no."
    found["STACK_GLOBAL"] = (
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x06" + CANARY.encode() + b"\x85R."
    )
    found["attribute of an allowed class"] = (
        b"\x80\x04\x8c\x08argparse\x8c\x13Namespace.__class__\x93."
    )
    return found


def _put_pickle(content: bytes, name: str, path: Path) -> None:
    """Put a pickle in the place of that of an archive of ``torch.save``."""

    def change(members: dict[str, bytes]) -> None:
        (record,) = (member for member in members if member.endswith(name))
        members[record] = content

    path.write_bytes(rezipped(path.read_bytes(), change))


def pickles() -> Iterator[Attack]:
    """Pickles that run code, and odd ones."""
    many = "training checkpoint of several processes"
    for name, content in _payloads().items():
        put, write = partial(_put_pickle, content, "data.pkl"), partial(_write, content)
        yield Attack(f"pickle with {name}", "official .pt", each("*.pt", put))
        yield Attack(f"bare pickle with {name}", "official .pt", each("*.pt", write))
        old = each("*.pt", partial(_replace_old, content))
        yield Attack(f"old file with {name}", "official .pt in PyTorch's old format", old)
        yield Attack(f"checkpoint with {name}", "training checkpoint", each("*.pt", put))
        for file in (".metadata", "state.pt"):
            yield Attack(f"{file} with {name}", many, partial(_put_sharded, file, content))
        objects = npy("|O", (10, 4, 2)) + content
        yield Attack(f"array with {name}", "packed codes", partial(put_array, objects))
        alone = partial(put_array, content)
        yield Attack(f"array that is a pickle with {name}", "packed codes", alone)
    odd = {
        "a text of 2^62 bytes": b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"a.",
        "bytes of 2^31": b"\x80\x04B\xff\xff\xff\x7fabc.",
        "a frame of 2^62 bytes": b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"N.",
        "a number of 2^31 digits": b"\x80\x04\x8b\xff\xff\xff\x7fabc.",
        "lists in lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "a place in memory of 2^31": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "nothing": b"", "an empty stack": b"\x80\x02.",
    }  # fmt: skip
    for name, content in odd.items():
        put = partial(_put_pickle, content, "data.pkl")
        for form in ("official .pt", "training checkpoint"):
            yield Attack(f"pickle with {name}", form, each("*.pt", put))
        yield Attack(f".metadata with {name}", many, partial(_put_sharded, ".metadata", content))
    ones = partial(torch.ones, dtype=torch.float32, device="cpu")
    tensors: Mapping[str, Callable[[], Any]] = {
        "a sparse tensor": lambda: ones(2, 2).to_sparse(),
        "a meta tensor": lambda: torch.empty(2, 2, device="meta", dtype=torch.float32),
        "a tensor repeated 2^50 times": lambda: ones(1).expand(2**50),
        "complex numbers": lambda: ones(2, 2).to(torch.complex64),
        "a quantized tensor": lambda: torch.quantize_per_tensor(ones(2), 1, 0, torch.qint8),
        "a nested tensor": lambda: torch.nested.nested_tensor([ones(2), ones(3)]),
        "a number": lambda: 5, "a list": lambda: [ones(2)],
    }  # fmt: skip
    for name, make in tensors.items():
        yield Attack(f"{name} as a weight", "official .pt", partial(_put_tensor, make))


def each(pattern: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Change the files of a folder whose names fit."""

    def build(folder: Path) -> None:
        for path in sorted(folder.rglob(pattern)):
            change(path)

    return build


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _replace_old(content: bytes, path: Path) -> None:
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
    path.write_bytes(head + system + content + pickle.dumps([], 2))


def _put_tensor(make: Callable[[], Any], folder: Path) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(folder / "model.pt", weights_only=True)
    for part in ("model", "ema"):
        content[part]["norm.weight"] = make()
    torch.save(content, folder / "model.pt")


def _put_sharded(file: str, content: bytes, folder: Path) -> None:
    """A file of a checkpoint, and its right checksum."""
    (marker,) = folder.rglob("complete")
    path = marker.with_name(file)
    if file == "state.pt":
        _put_pickle(content, "data.pkl", path)
    else:
        path.write_bytes(content)
    sums = json.loads(marker.read_text(encoding="utf-8"))
    sums[file] = hashlib.sha256(path.read_bytes()).hexdigest()
    marker.write_text(json.dumps(sums), encoding="utf-8")


def npy(descr: str, shape: tuple[int, ...]) -> bytes:
    """The head of a ``.npy`` file."""
    file = io.BytesIO()
    header: Any = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def put_array(content: bytes, folder: Path) -> None:
    """The first array of a data set, with right checksums."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    codes = index["shards"][0]["codes"]
    (folder / codes["file"]).write_bytes(content)
    codes["sha256"] = hashlib.sha256(content).hexdigest()
    put_index(folder, index)


def put_index(folder: Path, index: dict[str, Any]) -> None:
    index.pop("sha256", None)
    index["sha256"] = index_digest(index)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def archives() -> Iterator[Attack]:
    """Archives that are more than they seem."""

    def compressed(path: Path) -> None:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data/bomb", bytes(1 << 26))

    def endless(path: Path) -> None:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        # A block that can follow itself.
        block = deflate.compress(bytes(1 << 26)) + deflate.flush(zlib.Z_FULL_FLUSH)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data/bomb", block * 512 + deflate.flush())
            entry = archive.filelist[-1]  # written at the end
            entry.compress_type, entry.file_size = zipfile.ZIP_DEFLATED, 512 << 26

    def encrypted(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = data.index(b"PK\1\2")
        data[at + 8] |= 1
        path.write_bytes(bytes(data))

    def many(path: Path) -> None:
        data = path.read_bytes()
        at = data.rindex(b"PK\5\6")
        path.write_bytes(data[:at] + data[at : at + 8] + b"\xff\xff\xff\xff" + data[at + 12 :])

    def twice(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, _payloads()["os.mkdir"])

    def claims(path: Path) -> None:
        data = path.read_bytes()
        at = data.index(b"PK\1\2")
        path.write_bytes(data[: at + 20] + b"\xfe\xff\xff\xff" * 2 + data[at + 28 :])

    changes: Mapping[str, Callable[[Path], object]] = {
        "an archive that inflates": compressed, "32 GiB in 33 MB": endless,
        "an encrypted archive": encrypted,
        "65,535 members": many, "two members of one name": twice, "members of 4 GB": claims,
        "an archive in an archive": lambda path: path.write_bytes(
            b"PK\3\4" + path.read_bytes()[:500] + path.read_bytes()
        ),
    }  # fmt: skip
    for name, change in changes.items():
        for form in ("official .pt", "training checkpoint"):
            yield Attack(name, form, each("*.pt", change), optional=True)
