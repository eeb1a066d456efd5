"""Configuration and weights of an autoencoder, from released files and saved folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from bitdance.io import files, weights
from bitdance.io.files import CheckpointError, one_line, read_consistently
from bitdance.io.json_files import read_json
from bitdance.io.scaled_weights import rescale
from bitdance.io.validation import brief
from bitdance.models.config import AUTOENCODER_PRESETS, AutoencoderConfig
from bitdance.models.loading.checkpoint_config import infer_autoencoder_config, read_section
from bitdance.models.loading.model_files import Folder
from bitdance.models.loading.model_folder import open_folder
from bitdance.models.loading.part_files import read_part
from bitdance.models.loading.release_layout import Part, autoencoder_part
from bitdance.models.presets import expand_autoencoder

__all__ = ["autoencoder_tensors", "given_config", "read_autoencoder"]

_PARTS = ("encoder.", "decoder.")


def read_autoencoder(
    path: Path, *, prefer: str = "ema", config: AutoencoderConfig | str | Path | None = None
) -> tuple[AutoencoderConfig, weights.Tensors]:
    """Configuration and weights of the autoencoder in a file or folder.

    The configuration of a file is read from "<name>_config.json" or "<name>.json" beside it, or
    inferred from its shapes. A model's file or folder gives the autoencoder inside.

    Args:
        path: the file or folder.
        prefer: "ema" or "model", for files that contain both.
        config: see ``given_config``.

    Raises:
        FileNotFoundError: there is nothing.
        CheckpointError: the files are damaged, contain no autoencoder, or contradict `config`.
        ValueError: `config` is neither the name of a preset nor a file.
    """
    given = given_config(config)
    if not path.is_dir():
        return _read_file(path, prefer, given)
    part = autoencoder_part(Folder(path).names, str(path))
    if part is not None:
        return _read_part(path, part, prefer, given)
    if (path / "config.json").exists():
        found, tensors = read_consistently(path, lambda: _read_model(path))
        return _agreed(found, given, path / "config.json"), tensors
    known = "autoencoder.json, ae_config.json, autoencoder/config.json or config.json"
    raise FileNotFoundError(f"{path} has no trained autoencoder ({known})")


def given_config(config: AutoencoderConfig | str | Path | None) -> AutoencoderConfig | None:
    """The configuration that a caller names.

    Args:
        config: it; the name of a preset; a ``.json`` or ``.toml`` file with its fields, at the top
            level or in "autoencoder"; or None.

    Raises:
        CheckpointError: the file is damaged.
        FileNotFoundError: there is no such file.
        ValueError: the argument is not a configuration, a preset's name or a file.
    """
    if config is None or isinstance(config, AutoencoderConfig):
        return config
    if str(config) in AUTOENCODER_PRESETS:
        return AUTOENCODER_PRESETS[str(config)]
    path = Path(config)
    if path.suffix in (".json", ".toml"):
        return _parse(read_section(path, "autoencoder"), path)
    raise ValueError(
        f"config must be one of {', '.join(AUTOENCODER_PRESETS)}, or a .json or .toml file, got "
        f"{str(config)!r}"
    )


def autoencoder_tensors(tensors: weights.Tensors) -> weights.Tensors:
    """The autoencoder in a checkpoint, without discriminator, perceptual loss or model."""
    inner, _ = weights.split_prefix(tensors, "vae.")
    return {k: t for k, t in (inner or tensors).items() if k.startswith(_PARTS)}


def _read_file(
    path: Path, prefer: str, given: AutoencoderConfig | None
) -> tuple[AutoencoderConfig, weights.Tensors]:
    tensors = autoencoder_tensors(weights.read_weights(path, prefer=prefer))
    for end in ("_config.json", ".json"):
        settings = path.with_name(f"{path.stem}{end}")
        if os.path.lexists(settings):
            return _agreed(_parse(read_json(settings), settings), given, settings), tensors
    return given or infer_autoencoder_config(tensors, path), tensors


def _read_part(
    folder: Path, part: Part, prefer: str, given: AutoencoderConfig | None
) -> tuple[AutoencoderConfig, weights.Tensors]:
    tensors, scales = read_part(folder, part, prefer=prefer)
    # The published autoencoders have no scales, so that these copies are none of large weights.
    tensors |= {name: rescale(tensors[name], scales[name], torch.float32) for name in scales}
    tensors = autoencoder_tensors(tensors)
    if part.config is None:
        return given or infer_autoencoder_config(tensors, folder / part.weights), tensors
    settings = folder / part.config
    return _agreed(_parse(read_json(settings), settings), given, settings), tensors


def _parse(content: dict[str, Any], path: Path) -> AutoencoderConfig:
    if isinstance(content.get("autoencoder"), dict) and "z_channels" not in content:
        content = content["autoencoder"]  # of a model's configuration
    try:
        return AutoencoderConfig.from_dict(expand_autoencoder(content))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from error


def _agreed(
    found: AutoencoderConfig, given: AutoencoderConfig | None, source: Path
) -> AutoencoderConfig:
    """The given configuration, which must be the found one but for the groups of the loss."""
    if given is None:
        return found
    own, other = found.to_dict(), given.to_dict()
    for name in sorted((own.keys() | other.keys()) - {"num_codebooks"}):
        if own.get(name) != other.get(name):
            raise CheckpointError(
                f"{source} says {name} = {brief(own.get(name))}, but config= says "
                f"{brief(other.get(name))}"
            )
    return given


def _read_model(folder: Path) -> tuple[AutoencoderConfig, weights.Tensors]:
    found = open_folder(folder)
    if files.sha256(found.file) != found.digest:
        raise CheckpointError(
            f"{found.file} is altered: its checksum differs from {folder}/config.json"
        )
    return found.config.autoencoder, autoencoder_tensors(weights.read_tensors(found.file))
