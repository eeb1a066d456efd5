"""Formats of data sets, code indices, samples and lists."""

from __future__ import annotations

import functools
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance.cli.generate import _read_prompts
from bitdance.data.captioned_dataset import CaptionedDataset
from bitdance.data.idx import IdxImages
from bitdance.data.packed_dataset import PackedDataset, PackedDatasetError, Variants
from bitdance.data.packed_writer import PackedWriter
from bitdance.distributed import World
from bitdance.evaluation.image_sources import read_statistics
from bitdance.evaluation.prompt_lists import read_prompts
from bitdance.evaluation.sample_folder import SampleFolder, SampleSettings
from bitdance.io.folder_lock import LOCK, FolderLock
from bitdance.io.image_files import ImageError
from bitdance.io.npz import ImageArray, NpzError, read_arrays, write_images
from bitdance_kernels import CodeIndex
from tests.model.helpers.text_to_image_run import write_codes
from tests.model.helpers.tiny_images import write_data_set
from tests.reliability.files.formats import Format, Unchecked, digest

__all__ = ["FORMATS", "SAMPLES", "codes", "open_samples", "write_packed"]

_PACKED = (PackedDatasetError, FileNotFoundError)
_TEXT = Unchecked("lists are text for people to read and change", cuts=True)
_MAPPED = Unchecked("checksums are not compared if the caller says so")


def codes(seed: int = 0, count: int = 23) -> np.ndarray:
    """Codes uint8 [count, 4, 2] of 12 bits."""
    found = np.random.default_rng(seed).integers(0, 256, (count, 4, 2), dtype=np.uint8)
    found[..., 1] &= 15
    return found


def write_packed(folder: Path, seed: int = 0, *, variants: Variants | None = None) -> None:
    """Write a data set of 23 images in three shards."""
    found = codes(seed)
    if variants is not None:
        found = np.stack([found, *([found ^ 1] * (len(variants) - 1))], 1)
    with PackedWriter(
        folder, tokens=4, channels=12, metadata={"classes": ["a", "b"], "seed": seed},
        shard_size=10, variants=variants,
    ) as writer:  # fmt: skip
        writer.write(found, np.arange(23) % 2)


def _load_packed(folder: Path, *, verify: bool = True) -> str:
    data = PackedDataset(folder, verify=verify)
    items = np.arange(len(data))
    taken, labels = data.take(items)
    rest = [data.take(items, np.full(len(items), v))[0] for v in range(1, len(data.variants))]
    return digest(taken, labels, data.metadata, data.tokens, data.channels, rest)


def _load_captioned(folder: Path, *, verify: bool = True) -> str:
    data = CaptionedDataset(folder, verify=verify)
    items = [(data.id(i), data.captions(i), data.codes(i)) for i in range(len(data))]
    return digest(items, data.grids, data.channels, data.metadata)


def _index() -> CodeIndex:
    return CodeIndex(torch.from_numpy(codes(0, 150)).flatten(1))


def _load_index(folder: Path, *, mmap: bool = False) -> str:
    index = CodeIndex.load(folder / "codes.index", mmap=mmap)
    return digest(index.codes(), len(index), index.width)


SAMPLES = SampleSettings(
    model="m", dtype="float32", quantization="none", content="npz", images=10, labels="l", seed=0,
    num_inference_steps=2, guidance_scale=2.0, guidance_schedule="linear", block_size=4,
)  # fmt: skip
"""Settings of ten samples in three blocks."""


def open_samples(folder: Path) -> SampleFolder:
    """The folder of these samples, of 4 x 4 pixels."""
    return SampleFolder(folder, SAMPLES, (4, 4, 3), World())


def _images(first: int, count: int) -> np.ndarray:
    return np.random.default_rng(first).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def _make_blocks(folder: Path) -> None:
    with open_samples(folder) as samples:
        for items in samples.missing():
            samples.write(items, _images(items.start, len(items)))


def _load_blocks(folder: Path) -> str:
    with open_samples(folder) as samples:
        if missing := samples.missing():
            raise OSError(f"{missing} are to be made again")
        return digest(list(samples.read()))


def _make_npz(folder: Path) -> None:
    blocks = (_images(first, 4) for first in (0, 4, 8))
    write_images(folder / "samples.npz", blocks, np.arange(12), (4, 4))


def _load_npz(folder: Path) -> str:
    path = folder / "samples.npz"
    with ImageArray(path) as images:
        parts = [images.read(i, min(i + 5, len(images))) for i in range(0, len(images), 5)]
        found: list[Any] = [np.concatenate(parts) if parts else np.empty(0), images.shape]
    labels = read_arrays(path, ("arr_1",))
    if labels is None:
        raise NpzError("there are no labels")
    return digest(found, labels)


def _make_statistics(folder: Path) -> None:
    factor = np.random.default_rng(0).normal(size=(8, 6))
    np.savez(folder / "statistics.npz", mu=factor.mean(0), sigma=np.cov(factor, rowvar=False))


def _load_statistics(folder: Path) -> str:
    found = read_statistics(folder / "statistics.npz")
    if found is None:
        raise NpzError("there are no statistics")
    return digest(vars(found))


def _load_idx(folder: Path) -> str:
    images = IdxImages(folder, 8)
    return digest(images.take(np.arange(len(images))), images.labels, images.classes)


def _make_idx(folder: Path, *, packed: bool) -> None:
    write_data_set(folder)
    for path in [*folder.iterdir()]:
        content = path.read_bytes()
        if path.name.startswith("t10k"):
            path.unlink()
        elif packed:
            path.unlink()
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(content, mtime=0))


def _make_parquet(folder: Path) -> None:
    from bitdance.data.parquet import to_parquet

    write_packed(folder / "codes")
    to_parquet(folder / "codes", folder / "codes.parquet", row_group_size=10)
    shutil.rmtree(folder / "codes")


def _load_parquet(folder: Path) -> str:
    from bitdance.data.parquet import from_parquet

    try:
        from_parquet(folder / "codes.parquet", folder / "codes")
        return _load_packed(folder / "codes")
    finally:
        shutil.rmtree(folder / "codes", ignore_errors=True)


def _make_prompts(folder: Path) -> None:
    lines = [json.dumps({"prompt": f"a {word}", "tag": "one"}) for word in ("fox", "ship", "pear")]
    (folder / "geneval.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "dpg.json").write_text(json.dumps({"a": "a red fox", "b": "two pears"}), "utf-8")
    (folder / "prompts.txt").write_text("a red fox\ntwo pears, grüne\n", encoding="utf-8")


def _load_prompts(folder: Path) -> str:
    return digest(
        read_prompts(folder / "geneval.jsonl", "geneval"), read_prompts(folder / "dpg.json", "dpg"),
        _read_prompts(folder / "prompts.txt"),
    )  # fmt: skip


def _load_lock(folder: Path) -> str:
    """A lock that a killed process has left does not hold, or names a machine elsewhere."""
    FolderLock(folder).release()
    return digest((folder / LOCK).exists())


def _make_lock(folder: Path) -> None:
    import socket

    owner = {"host": socket.gethostname(), "pid": 2**22 + 1}  # of no process
    (folder / LOCK).write_text(json.dumps(owner), encoding="utf-8")


FORMATS = (
    Format(
        "packed codes", write_packed, _load_packed, _PACKED,
        readers=(
            "bitdance.data.packed_files.read_index", "bitdance.data.packed_files.map_array",
        ),
    ),
    Format(
        "packed codes of variants",
        lambda folder: write_packed(folder, variants=Variants(crops=1, flips=True)),
        _load_packed, _PACKED,
    ),
    Format(
        "packed codes, not verified", write_packed,
        functools.partial(_load_packed, verify=False), _PACKED, {"*": _MAPPED},
    ),
    Format("packed codes with captions", lambda folder: write_codes(folder, 9), _load_captioned,
           _PACKED),
    Format(
        "packed codes with captions, not verified", lambda folder: write_codes(folder, 9),
        functools.partial(_load_captioned, verify=False), _PACKED, {"*": _MAPPED},
    ),
    Format(
        "index of codes", lambda folder: _index().save(folder / "codes.index"), _load_index,
        (ValueError, FileNotFoundError),
        readers=(
            "bitdance_kernels.binary.hamming_distance._index.CodeIndex",
            "bitdance_kernels.binary.hamming_distance._index._is_index",
        ),
    ),
    Format(
        "index of codes, mapped", lambda folder: _index().save(folder / "codes.index"),
        functools.partial(_load_index, mmap=True), (ValueError, FileNotFoundError),
        {"*": Unchecked("pages of a mapped file are not read before they are searched")},
    ),
    Format(
        "blocks of samples", _make_blocks, _load_blocks, (OSError, ValueError),
        {"samples.json": _TEXT},
        readers=(
            "bitdance.evaluation.sample_folder.SampleFolder",
            "bitdance.evaluation.sample_settings.read_settings",
        ),
    ),
    Format(
        "images as .npz", _make_npz, _load_npz, (NpzError, FileNotFoundError),
        readers=(
            "bitdance.io.npz.ImageArray", "bitdance.io.npz.read_arrays", "bitdance.io.npz._open",
            "bitdance.evaluation.image_sources._npz",
        ),
    ),
    Format(
        "statistics of features", _make_statistics, _load_statistics,
        (NpzError, FileNotFoundError),
        readers=(
            "bitdance.evaluation.image_sources.read_statistics", "bitdance.io.npz._check_small",
        ),
    ),
    Format(
        "IDX", functools.partial(_make_idx, packed=False), _load_idx,
        (ImageError, FileNotFoundError, ValueError), {"*": Unchecked("MNIST's format has none")},
        readers=("bitdance.data.idx.read_idx",),
    ),
    Format(
        "IDX in gzip", functools.partial(_make_idx, packed=True), _load_idx,
        (ImageError, FileNotFoundError, ValueError),
    ),
    Format(
        "Parquet", _make_parquet, _load_parquet, (PackedDatasetError, ValueError, OSError),
        {"*": Unchecked("pages have checksums, the description at the end has none")},
        readers=("bitdance.data.parquet.from_parquet",), needs=("pyarrow",),
    ),
    Format(
        "lists of prompts", _make_prompts, _load_prompts, (ValueError, FileNotFoundError),
        {"*": _TEXT},
        readers=(
            "bitdance.evaluation.prompt_lists.read_prompts",
            "bitdance.evaluation.prompt_lists._of_folder", "bitdance.cli.generate._read_prompts",
        ),
    ),
    Format(
        "lock of a folder", _make_lock, _load_lock, (OSError,), {"*": _TEXT},
        readers=("bitdance.io.folder_lock._lock",),
    ),
)  # fmt: skip
"""Every format of data."""
