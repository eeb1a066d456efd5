"""Readers that get changed files: which file is changed, how, and what is made right again."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from bitdance.data.packed_files import INDEX, index_digest
from bitdance.integrations.serving.models import serve_model
from bitdance.integrations.serving.requests import ApiError, parse_request
from bitdance.io.files import CheckpointError
from bitdance.models.config import ModelConfig
from bitdance.models.loading.checkpoint_config import infer_config, read_claim
from tests.model.helpers.tiny import tiny_config
from tests.reliability.files import mutations
from tests.reliability.files.formats import Format, digest, registry
from tests.reliability.files.formats_models import pipeline, text_pipeline

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["OWN", "Target", "targets"]

Files = Mapping[str, bytes]
Mutate = Callable[[Path, Files, random.Random], object]


@dataclass(frozen=True)
class Target:
    """A reader of changed files.

    Attributes:
        name: short and unique.
        format: how a sample is made and read, and which errors it may raise.
        mutate: changes files of a folder, of which it gets the whole content.
        weight: inputs beside those of other targets.
    """

    name: str
    format: Format
    mutate: Mutate
    weight: int = 1


def targets() -> tuple[Target, ...]:
    """All targets whose packages are installed."""
    formats = {each.name: each for each in registry()} | {each.name: each for each in OWN}
    return tuple(
        Target(f"{name}: {what}", formats[name], mutate, weight)
        for name, what, weight, mutate in _ROWS
        if name in formats
    )


def _bytes(pattern: str, change: Callable[[bytes, random.Random], bytes]) -> Mutate:
    """Change a file whose name fits."""

    def mutate(folder: Path, files: Files, draws: random.Random) -> None:
        name = draws.choice(sorted(name for name in files if Path(name).match(pattern)))
        (folder / name).write_bytes(change(files[name], draws))

    return mutate


def _json(pattern: str) -> Mutate:
    return _bytes(pattern, lambda data, draws: mutations.json_bytes(json.loads(data), draws))


def _json_lines(data: bytes, draws: random.Random) -> bytes:
    lines = data.splitlines()
    at = draws.randrange(len(lines))
    lines[at] = mutations.json_bytes(json.loads(lines[at]), draws)
    return b"\n".join(lines)


def _toml(data: bytes, draws: random.Random) -> bytes:
    if draws.random() < 0.3:
        return mutations.havoc(data, draws)
    changed = mutations.changed_json(tomllib.loads(data.decode()), draws)
    try:
        return tomli_w.dumps(changed).encode("utf-8", "surrogatepass")
    except (TypeError, AttributeError, ValueError, RecursionError):  # what TOML has not
        key = draws.choice(("optim.steps", "data.path", "autoencoder", "model.dim", "a.b.c"))
        value = json.dumps(mutations.nonsense(draws))
        return data + f"\n{key} = {value}\n".encode("utf-8", "surrogatepass")


def _index_of_packed(folder: Path, files: Files, draws: random.Random) -> None:
    """The index changed, with its right checksum."""
    content = json.loads(files[INDEX])
    del content["sha256"]
    content = mutations.changed_json(content, draws)
    if isinstance(content, dict):
        content["sha256"] = index_digest(content)
    (folder / INDEX).write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))


def _array_of_packed(folder: Path, files: Files, draws: random.Random) -> None:
    """An array changed, with its right checksum in the index."""
    content = json.loads(files[INDEX])
    shard = draws.choice(content["shards"])
    entry = draws.choice([value for value in shard.values() if isinstance(value, dict)])
    data = mutations.mutate_npy(files[entry["file"]], draws)
    (folder / entry["file"]).write_bytes(data)
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    del content["sha256"]
    content["sha256"] = index_digest(content)
    (folder / INDEX).write_text(json.dumps(content), encoding="utf-8")


def _weights_of_folder(folder: Path, files: Files, draws: random.Random) -> None:
    content = json.loads(files["config.json"])
    name = content["weights"]["file"]
    data = mutations.mutate_safetensors(files[name], draws)
    (folder / name).write_bytes(data)
    content["weights"]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


def _sharded(folder: Path, files: Files, draws: random.Random) -> None:
    """A file of a checkpoint changed, with its right checksum, or the list of checksums."""
    (marker,) = (name for name in files if name.endswith("/complete"))
    sums = json.loads(files[marker])
    name = draws.choice(["", *sums])
    if not name:
        (folder / marker).write_bytes(mutations.json_bytes(sums, draws))
        return
    path = f"{Path(marker).parent}/{name}"
    change = mutations.mutate_pickle if name == "state.pt" else mutations.havoc
    data = change(files[path], draws)
    (folder / path).write_bytes(data)
    sums[name] = hashlib.sha256(data).hexdigest()
    (folder / marker).write_text(json.dumps(sums), encoding="utf-8")


def _index_of_codes(data: bytes, draws: random.Random) -> bytes:
    """Head and blocks changed, half of them with right checksums."""
    changed = bytearray(mutations.havoc(data[:64], draws)[:64].ljust(64, b"\0") + data[64:])
    if draws.random() < 0.3:
        changed = bytearray(mutations.havoc(data, draws))
    if draws.random() < 0.7 and len(changed) >= 64:
        changed[:12] = data[:12]
        changed[12:16] = zlib.crc32(changed[64:]).to_bytes(4, "little")
        changed[32:36] = zlib.crc32(changed[:32]).to_bytes(4, "little")
    return bytes(changed)


def _zip_with_arrays(data: bytes, draws: random.Random) -> bytes:
    if draws.random() < 0.4:
        return mutations.mutate_archive(data, draws)

    def change(members: dict[str, bytes]) -> None:
        name = draws.choice(list(members))
        members[name] = mutations.mutate_npy(members[name], draws)
        if draws.random() < 0.1:
            members[draws.choice(("arr_0", "a.npy", "../b.npy", "mu.npy"))] = members.pop(name)

    return mutations.rezipped(data, change)


def _load_claim(folder: Path) -> str:
    path = folder / "config.json"
    claim = read_claim(path)
    tensors = pipeline().model.state_dict()
    found: ModelConfig = infer_config(tensors, [claim], path)
    return digest(found)


@functools.cache
def _served() -> tuple[Any, ...]:
    return serve_model(pipeline(), "tiny"), serve_model(text_pipeline(), "tiny")


def _load_request(folder: Path) -> str:
    body = (folder / "body.json").read_bytes()
    errors, plans = [], []
    for model in _served():
        try:
            plans.append(model.plan(parse_request(body)))
        except ApiError as error:
            errors.append(error)
    for each in errors:
        json.dumps(each.content)
        if not 400 <= each.status < 500:
            raise AssertionError(f"status {each.status}")
    if not plans:
        raise errors[-1]
    return digest([(plan.kind, plan.size, plan.format) for plan in plans])


def _make_request(folder: Path) -> None:
    fields = {
        "prompt": "boot", "n": 2, "size": "8x8", "seed": 5, "num_inference_steps": 3,
        "guidance_scale": 2.0, "output_format": "webp", "output_compression": 50, "stream": True,
        "partial_images": 1, "user": "somebody", "quality": "auto", "negative_prompt": "",
        "model": "tiny", "response_format": "b64_json",
    }  # fmt: skip
    (folder / "body.json").write_text(json.dumps(fields), encoding="utf-8")


OWN = (
    Format(
        "settings of a model",
        lambda folder: (folder / "config.json").write_text(json.dumps(tiny_config().to_dict())),
        _load_claim, (CheckpointError, FileNotFoundError),
        readers=("bitdance.models.loading.checkpoint_config.read_section",),
    ),
    Format("request to a server", _make_request, _load_request, (ApiError,)),
)  # fmt: skip

_TENSORS, _PICKLE = mutations.mutate_safetensors, mutations.mutate_pickle
_ROWS: tuple[tuple[str, str, int, Mutate], ...] = (
    ("folder of a model", "config.json", 4, _json("config.json")),
    ("folder of a model", "weights", 3, _weights_of_folder),
    ("settings of a model", "JSON", 6, _json("config.json")),
    ("safetensors alone", "head", 4, _bytes("*", _TENSORS)),
    ("safetensors with a sidecar", "sidecar", 1, _bytes("*.sha256", mutations.havoc)),
    ("official .pt", "pickle", 3, _bytes("*", _PICKLE)),
    ("official .pt", "archive", 2, _bytes("*", mutations.mutate_archive)),
    ("official .pt in PyTorch's old format", "pickle", 2, _bytes("*", mutations.havoc)),
    ("autoencoder", "settings", 2, _json("ae_config.json")),
    ("text-to-image release", "settings", 3, _json("*.json")),
    ("folders of diffusers, weights in parts", "settings", 3, _json("*.json")),
    ("package in float8", "head", 2, _bytes("*.safetensors", _TENSORS)),
    ("text tokenizer", "JSON", 2, _json("*.json")),
    ("classifier", "head", 2, _bytes("*", _TENSORS)),
    ("training checkpoint", "pickle", 3, _bytes("*.pt", _PICKLE)),
    ("training checkpoint", "archive", 1, _bytes("*.pt", mutations.mutate_archive)),
    ("training checkpoint of several processes", "files", 3, _sharded),
    ("run folder", "TOML", 6, _bytes("config.toml", _toml)),
    ("run folder", "log", 1, _bytes("log.csv", mutations.havoc)),
    ("tables of kernels", "JSON", 2, _json("*.json")),
    ("table of plans", "JSON", 2, _json("*.json")),
    ("packed codes", "index", 4, _index_of_packed),
    ("packed codes", "arrays", 3, _array_of_packed),
    ("packed codes of variants", "index", 2, _index_of_packed),
    ("packed codes, not verified", "arrays", 2, _bytes("*.npy", mutations.mutate_npy)),
    ("packed codes with captions", "index", 3, _index_of_packed),
    ("packed codes with captions", "arrays", 3, _array_of_packed),
    ("index of codes", "head", 3, _bytes("*", _index_of_codes)),
    ("index of codes, mapped", "head", 2, _bytes("*", _index_of_codes)),
    ("blocks of samples", "blocks", 2, _bytes("*.safetensors", _TENSORS)),
    ("blocks of samples", "settings", 2, _json("samples.json")),
    ("images as .npz", "arrays", 3, _bytes("*", _zip_with_arrays)),
    ("statistics of features", "arrays", 2, _bytes("*", _zip_with_arrays)),
    ("IDX", "bytes", 2, _bytes("*", mutations.havoc)),
    ("IDX in gzip", "bytes", 1, _bytes("*", mutations.havoc)),
    ("Parquet", "bytes", 2, _bytes("*", mutations.havoc)),
    ("lists of prompts", "JSON lines", 2, _bytes("*.jsonl", _json_lines)),
    ("lists of prompts", "JSON", 2, _json("*.json")),
    ("lists of prompts", "text", 1, _bytes("*.txt", mutations.havoc)),
    ("lock of a folder", "JSON", 1, _json(".lock")),
    ("picture, png", "chunks", 4, _bytes("*", mutations.mutate_chunks)),
    ("picture, webp", "chunks", 3, _bytes("*", mutations.mutate_riff)),
    ("picture, tiff", "directory", 3, _bytes("*", mutations.mutate_directory)),
    ("picture, jpg", "bytes", 2, _bytes("*", mutations.havoc)),
    ("picture, bmp", "bytes", 2, _bytes("*", mutations.havoc)),
    ("picture, gif", "bytes", 2, _bytes("*", mutations.havoc)),
    ("archive of pictures", "heads", 3, _bytes("*", mutations.mutate_tar)),
    ("pictures with captions", "JSON lines", 2, _bytes("*.jsonl", _json_lines)),
    ("pictures with captions", "heads", 2, _bytes("*.tar", mutations.mutate_tar)),
    ("pictures with captions in Parquet", "bytes", 2, _bytes("*", mutations.havoc)),
    ("request to a server", "JSON", 8, _json("*")),
)
