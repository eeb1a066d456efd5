"""From files to a class-conditional model; either all of it is loaded or nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitdance.io import files, weights
from bitdance.io.files import CheckpointError, NoModelError, read_consistently
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import AUTOENCODER_PRESETS, PRESETS, ModelConfig
from bitdance.models.loading.autoencoder_files import read_autoencoder
from bitdance.models.loading.checkpoint_config import (
    Claim,
    claims_of_arguments,
    infer_config,
    read_claim,
)
from bitdance.models.loading.meta_device import (
    build_on_meta,
    check_block_counts,
    model_block_counts,
)
from bitdance.models.loading.model_folder import is_weights_of, open_folder
from bitdance.models.quantization import check_blocks
from bitdance.models.streamed_weights import stream_weights

__all__ = ["digest", "load_file", "load_folder"]

Loaded = tuple[BitDanceModel, Mapping[str, Any]]
"""A model, and further arguments of ``BitDancePipeline``."""


def digest(path: Path) -> str:
    """SHA-256 of a model's weights, in a folder or a file of their own."""
    return open_folder(path).digest if path.is_dir() else files.sha256(path)


def load_folder(
    folder: Path, dtype: torch.dtype, *, device: torch.device | str = "cpu",
    quantization: str | None = None,
) -> Loaded:  # fmt: skip
    """Load what ``save_pretrained`` wrote; see ``BitDancePipeline.from_pretrained``.

    Raises:
        CheckpointError: the files are damaged or do not fit.
        ValueError: the model cannot be quantized.
    """

    def load() -> Loaded:
        found = open_folder(folder)
        tensors = weights.read_tensors(found.file)
        model = _structure(found.config, tensors, dtype, str(folder), quantization)
        if files.sha256(found.file) != found.digest:
            raise CheckpointError(
                f"{found.file} is altered: its checksum differs from {folder}/config.json"
            )
        _load(model, tensors, str(folder), device, quantization)
        return model, found.extra

    return read_consistently(folder, load)


def load_file(
    path: Path,
    dtype: torch.dtype,
    *,
    autoencoder: Path | None = None,
    config: ModelConfig | str | Path | None = None,
    prefer: str = "ema",
    device: torch.device | str = "cpu",
    quantization: str | None = None,
) -> Loaded:
    """Load a file of weights; see ``BitDancePipeline.from_pretrained``.

    Raises:
        CheckpointError: the files are damaged, do not fit, or do not say what they are.
        FileNotFoundError: there is no such file.
        ValueError: `config` is neither the name of a preset nor a file, or the model cannot be
            quantized.
    """
    given = _given(path, config)
    if autoencoder is None and given is None and is_weights_of(path.parent, path.name):
        return load_folder(path.parent, dtype, device=device, quantization=quantization)
    stored = weights.read_checkpoint(path, prefer=prefer)
    tensors = stored.tensors
    said = [*claims_of_arguments(stored.arguments), *_beside(path), *([given] if given else [])]
    if autoencoder is not None:
        _, tensors = weights.split_prefix(tensors, "vae.")
        shape, own = read_autoencoder(autoencoder, prefer=prefer)
        tensors |= {f"vae.{name}": tensor for name, tensor in own.items()}
        if said and not any("autoencoder" in fields for _, fields in said):
            said.append(Claim(f"the files of {autoencoder}", {"autoencoder": shape}))
    found = infer_config(tensors, said, path)
    source = str(path)
    if not any(name.startswith("vae.") for name in tensors):
        source = f"{path}, which has no autoencoder (give autoencoder=...),"
    model = _structure(found, tensors, dtype, source, quantization)
    _load(model, tensors, source, device, quantization)
    return model, {}


def _load(
    model: BitDanceModel, tensors: weights.Tensors, source: str, device: torch.device | str,
    quantization: str | None,
) -> None:  # fmt: skip
    stream_weights(
        model, tensors, source, device=device, quantization=quantization, blocks=model.blocks
    )


def _structure(
    config: ModelConfig,
    tensors: weights.Tensors,
    dtype: torch.dtype,
    source: str,
    quantization: str | None,
) -> BitDanceModel:
    """The model without memory, once it is clear that `tensors` are its state."""
    check_block_counts(tensors, model_block_counts(config), BitDanceModel.__name__, source)
    model = build_on_meta(lambda: BitDanceModel(config, dtype=dtype, device="meta"), source)
    weights.check_weights(model, tensors, source, values=False)
    if quantization is not None:
        check_blocks("from_pretrained", model.blocks, quantization)
    return model


def _given(path: Path, config: ModelConfig | str | Path | None) -> Claim | None:
    if config is None:
        return None
    if str(config) in AUTOENCODER_PRESETS:
        raise NoModelError(f"{path} must be a model, got the preset {config} of an autoencoder")
    if isinstance(config, ModelConfig):
        return Claim("config=", config.to_dict())
    if str(config) in PRESETS:
        return Claim(f"the settings of {config}", PRESETS[str(config)].to_dict())
    path = Path(config)
    if path.suffix in (".json", ".toml"):
        return read_claim(path)
    raise ValueError(
        f"config must be one of {', '.join(PRESETS)}, or a .json or .toml file, got {str(config)!r}"
    )


def _beside(path: Path) -> list[Claim]:
    """What a configuration that was released with a file says."""
    beside = path.with_name(f"{path.stem}_config.json")
    return [read_claim(beside)] if os.path.lexists(beside) else []
