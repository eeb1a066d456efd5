"""Tensors of a part of a model, in one file or in several."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from bitdance.io import weights
from bitdance.io.files import CheckpointError
from bitdance.io.json_files import read_json
from bitdance.io.scaled_weights import split_scales
from bitdance.io.state_names import normalize_names
from bitdance.models.loading.release_layout import Part

__all__ = ["ScaledTensors", "read_part", "select_part", "weight_files"]

ScaledTensors = tuple[weights.Tensors, weights.Tensors]
"""Tensors by the names that the model uses, and the scales of some of them."""


def weight_files(folder: Path, part: Part, names: Collection[str] = ()) -> list[str]:
    """Files of the weights of a part, with those of their checksums.

    Args:
        folder: folder with the index, if there is one.
        part: the part.
        names: files that there are, to find checksums.

    Raises:
        CheckpointError: the index is damaged, or names files elsewhere.
        FileNotFoundError: the index is missing.
    """
    files = _shards(folder, part)
    return files + [f"{file}.sha256" for file in files if f"{file}.sha256" in names]


def read_part(folder: Path, part: Part, *, prefer: str = "ema") -> ScaledTensors:
    """All tensors of a part.

    Args:
        folder: folder of the model.
        part: the part.
        prefer: "ema" or "model", for files that contain both.

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointError: a file is damaged, or two have a tensor of one name.
    """
    source = str(folder / part.weights)
    if part.prefixes:
        weights.check_checksum(folder / part.weights)
        return select_part(weights.read_tensors(folder / part.weights), part, source)
    if not part.is_sharded:
        tensors = weights.read_weights(folder / part.weights, prefer=prefer)
        return split_scales(tensors, source)
    stored: weights.Tensors = {}
    for name in _shards(folder, part):
        weights.check_checksum(folder / name)
        shard = weights.read_tensors(folder / name)
        twice = sorted(shard.keys() & stored.keys())
        if twice:
            raise CheckpointError(f"{folder / name} has {twice[0]}, which another part has too")
        stored |= shard
    return split_scales(normalize_names(stored, prefer, source), source)


def select_part(tensors: weights.Tensors, part: Part, source: str) -> ScaledTensors:
    """The tensors of a part, of a file that may have others.

    Args:
        tensors: all tensors, perhaps on the meta device.
        part: the part, which has prefixes.
        source: origin of the tensors, for errors.

    Raises:
        CheckpointError: there are none, or a scale does not fit.
    """
    for prefix in part.prefixes:
        below, _ = weights.split_prefix(tensors, prefix)
        if below:
            return split_scales(below, source)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(part.bare)}
    if not own:
        known = ", ".join((*part.prefixes, *part.bare))
        raise CheckpointError(f"{source} has no tensors whose names begin with any of {known}")
    return split_scales(own, source)


def _is_file_name(name: str) -> bool:
    """Whether a file can have this name, in the folder where it is named."""
    return 0 < len(name.encode("utf-8", "surrogatepass")) < 256 and Path(name).name == name


def _shards(folder: Path, part: Part) -> list[str]:
    """Names of the files of a part's weights below the folder."""
    if not part.is_sharded:
        return [part.weights]
    index = folder / part.weights
    names = read_json(index).get("weight_map")
    files = list(names.values()) if isinstance(names, dict) else []
    if not files or not all(isinstance(name, str) and _is_file_name(name) for name in files):
        raise CheckpointError(f"{index} must map tensors to files beside it")
    beside = PurePosixPath(part.weights).parent
    return [str(beside / name) for name in sorted(set(files))]
